"""Decontaminates files of pairs, outside of a recipe."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from stillroom.data.cleaning.contamination_index import ContaminationIndex, EmbedFunction
from stillroom.data.cleaning.contamination_report import ContaminationReport
from stillroom.data.cleaning.decontaminate import CHUNK_PAIRS, decontaminate
from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import EvaluationSet, Pair, SkippedRows
from stillroom.errors import UserError
from stillroom.storage.atomic import atomic_write

log = logging.getLogger(__name__)


def decontaminate_files(
    files: Sequence[Path],
    index: ContaminationIndex,
    evaluation_sets: Mapping[str, EvaluationSet],
    out: Path | None,
    *,
    min_score: float | None = None,
    max_listed: int = 1000,
    embed: EmbedFunction | None = None,
    similarity: float = 0.95,
) -> ContaminationReport:
    """Writes the clean pairs of some files to `out`, one JSON object a line.

    Args:
        index: of the evaluation sets.
        out: may be one of the files; None only reports.
        min_score: leaves out pairs with lower scores.
        max_listed: how many hits of each evaluation set the report lists.
        embed, similarity: as in `decontaminate`.

    Raises:
        UserError: when a file is wrong; `out` is then left as it was.
    """
    skipped = SkippedRows()
    report = ContaminationReport(evaluation_sets, "report" if out is None else "drop", max_listed)

    def clean_pairs() -> Iterator[Pair]:
        for path in files:
            pairs = read_pairs(path, min_score=min_score, skipped=skipped)
            while chunk := list(islice(pairs, CHUNK_PAIRS)):
                clean, hits = decontaminate(chunk, index, embed=embed, similarity=similarity)
                report.add(str(path), len(chunk), hits)
                yield from clean

    if out is None:
        for _ in clean_pairs():
            pass
        _warn_of_skipped(skipped)
        return report
    if not out.parent.is_dir():
        raise UserError(str(out.parent), "there is no such folder", "Make it")
    with atomic_write(out) as file:
        for pair in clean_pairs():
            row = {"query": pair.query, "positive": pair.passage}
            negatives = {"negatives": pair.negatives} if pair.negatives else {}
            file.write(json.dumps(row | negatives, ensure_ascii=False) + "\n")
    _warn_of_skipped(skipped)
    return report


def _warn_of_skipped(skipped: SkippedRows) -> None:
    for reason, count in skipped.counts.items():
        log.warning("left out while reading: %s: %d", reason, count)
