"""What decontamination found, for people to look at."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from stillroom.data.cleaning.decontaminate import CHUNK, Embed, Hit, Judged, decontaminate
from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import EvaluationSet, Pair
from stillroom.errors import UserError
from stillroom.storage.atomic import written


@dataclass
class Contamination:
    """Hits source by source: all are counted, and the first of each set listed.

    Attributes:
        evaluation: the sets, for the texts that were matched.
        action: what is done with the pairs.
        listed: hits of a set that are listed, at most.
        checked: pairs looked at, by source.
        counts: pairs hit, by source, set and kind of match.
        hits: those listed.
    """

    evaluation: Mapping[str, EvaluationSet]
    action: Literal["drop", "report"] = "drop"
    listed: int = 1000
    checked: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    hits: list[dict[str, Any]] = field(default_factory=list)
    _of_set: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, pairs: int, hits: Sequence[Hit]) -> None:
        """Takes the hits among a source's next so many pairs."""
        before = self.checked[source]
        self.checked[source] += pairs
        for hit in hits:
            self.counts[source, hit.set, hit.kind] += 1
            self._of_set[hit.set] += 1
            if self._of_set[hit.set] <= self.listed:
                kept = self.evaluation[hit.set]
                known = (kept.queries if hit.role == "query" else kept.passages)[hit.id]
                shown = asdict(replace(hit, pair=before + hit.pair))
                self.hits.append({"source": source, **shown, "evaluation_text": known})

    def as_json(self) -> dict[str, Any]:
        """As contamination.json has it; `pair` is a place among all pairs of its source."""
        counts = [
            {"source": source, "set": name, "kind": kind, "pairs": count}
            for (source, name, kind), count in sorted(self.counts.items())
        ]
        return {
            "action": self.action,
            "checked": dict(self.checked),
            "found": self.counts.total(),
            "counts": counts,
            "listed_per_set": self.listed,
            "hits": self.hits,
        }


def clean_files(
    files: Sequence[Path],
    judged: Judged,
    evaluation: Mapping[str, EvaluationSet],
    out: Path | None,
    *,
    listed: int = 1000,
    embed: Embed | None = None,
    similarity: float = 0.95,
) -> Contamination:
    """Writes the pairs of files that give nothing away, one JSON object a line; without `out`
    they are only looked at.

    Raises:
        UserError: when a file is wrong; `out` is then not written.
    """
    found = Contamination(evaluation, "report" if out is None else "drop", listed)
    if out is None:
        for _ in _cleaned(files, judged, found, embed, similarity):
            pass
        return found
    if not out.parent.is_dir():
        raise UserError(str(out.parent), "there is no such folder", "Make it")
    with written(out) as file:  # it may be one of those that are read
        for pair in _cleaned(files, judged, found, embed, similarity):
            row = {"query": pair.query, "positive": pair.passage}
            more = {"negatives": pair.negatives} if pair.negatives else {}
            file.write(json.dumps(row | more, ensure_ascii=False) + "\n")
    return found


def _cleaned(
    files: Sequence[Path],
    judged: Judged,
    found: Contamination,
    embed: Embed | None,
    similarity: float,
) -> Iterator[Pair]:
    for path in files:
        pairs = read_pairs(path)
        while chunk := list(islice(pairs, CHUNK)):
            clean, hits = decontaminate(chunk, judged, embed=embed, similarity=similarity)
            found.add(str(path), len(chunk), hits)
            yield from clean
