"""`stillroom mine`: hard negatives for a user's own files, without a recipe."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cluster.session import connect
from stillroom.config.languages import AUTO
from stillroom.config.recipe import Negatives
from stillroom.config.scale import Scale
from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.files import read_pairs, read_passages
from stillroom.data.readers.records import EvaluationSet, SkippedRows
from stillroom.data.text.detection import detect_language
from stillroom.encoders.files.inputs import folder_prompts
from stillroom.encoders.model_names import find_model, locate_model, resolve_artifact_name
from stillroom.encoders.prompt_names import prompt_by_name
from stillroom.errors import UserError
from stillroom.mining.formats import FORMATS, PairTexts
from stillroom.mining.known_texts import KnownTexts, find_known_texts
from stillroom.stages.negatives.mine import MiningTexts, mine
from stillroom.stages.vectors.embed import TextsToEmbed, embed
from stillroom.storage.artifacts import Store
from stillroom.storage.atomic import atomic_write
from stillroom.storage.columns import Ragged

log = logging.getLogger(__name__)
SHARD_SIZE = 1024  # texts encoded at once


def mine_files(
    models: Sequence[str],
    *,
    pairs: Sequence[Path],
    passages: Sequence[Path],
    evaluation: Sequence[Path],
    out: Path,
    format: str,
    language: str,
    section: Negatives,
    with_scores: bool,
    seed: int,
    root: str,
    scale: Scale,
    prompt_name: str | None = None,
    min_score: float | None = None,
) -> dict[str, Any]:
    """Writes the pairs with their negatives as JSONL; `out` appears when it is complete.

    Args:
        models: the miners: `bm25`, or models as named everywhere.
        passages: files of more passages to mine from.
        evaluation: folders of sets in BEIR layout; their passages never become negatives.
        format: one of `FORMATS`.
        language: of the texts, for BM25; `auto` detects it.
        prompt_name: of the models' prompt for queries; None: each model's own for them.
        with_scores: also writes the scores of positives and negatives.
        min_score: leaves out pairs with lower scores.
        root: of the artifacts that models may name.

    Returns:
        Counts of kept and rejected candidates, and the language that BM25 took.

    Raises:
        UserError: when a file, an option or a model is wrong, before any model is loaded.
    """
    if format not in FORMATS:
        raise UserError("--format", f"{format!r} is unknown", f"Use one of {', '.join(FORMATS)}")
    if out.exists():
        raise UserError(f"--out {out}", "exists already", "Name a new file")
    if not out.absolute().parent.is_dir():
        raise UserError(
            f"--out {out}", "its folder does not exist", "Create it, or name another folder"
        )
    store = Store(root)
    names = [resolve_artifact_name(name, store) for name in models]
    folders = {name: None if name == "bm25" else locate_model(name) for name in names}
    query_prompts = {
        name: prompt_by_name(folder_prompts(folder), prompt_name, f"--prompt-name with {name}")
        for name, folder in folders.items()
        if folder is not None and prompt_name is not None
    }
    cross_encoder = None
    if section.cross_encoder is not None:
        cross_encoder = find_model(section.cross_encoder, store)
        os.fspath(cross_encoder)  # raises where it is missing
    sets = [read_beir(folder) for folder in evaluation]
    texts = read_texts(pairs, passages, min_score)
    log.info("%d pairs, %d passages", len(texts.queries), len(texts.passages))
    connect(scale)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as work:
        miners: dict[str, Path | None] = {}
        for number, (name, folder) in enumerate(folders.items()):
            miners[name] = None if folder is None else Path(work) / str(number)
            if folder is not None:
                _embed(texts, folder, Path(work) / str(number), scale, query_prompts.get(name))
        known = _known_texts(texts, sets, section)
        if language == AUTO and "bm25" in names:
            language = detect_language(texts.passages)
        mined = mine(
            MiningTexts(
                texts.queries,
                [language] * len(texts.queries),
                texts.passages,
                [language] * len(texts.passages),
                known,
            ),
            miners,
            section,
            cross_encoder=cross_encoder,
            seed=seed,
            scale=scale.negatives,
        )
    _write(FORMATS[format](texts, mined, with_scores), out)
    return {
        "out": str(out),
        "pairs": len(texts.queries),
        **({"language": language} if "bm25" in names else {}),
        **mined.summary(),
    }


def read_texts(
    pairs: Sequence[Path], passages: Sequence[Path], min_score: float | None = None
) -> PairTexts:
    """The pairs, but those with a lower score, and the passages of all files."""
    texts, skipped = PairTexts(), SkippedRows()
    negatives = []
    for path in pairs:
        for pair in read_pairs(path, min_score=min_score, skipped=skipped):
            texts.queries.append(pair.query)
            texts.positive.append(texts.add_passage(pair.passage))
            negatives.append(pair.negatives)
    texts.negatives = [
        [texts.add_passage(text) for text in pair_negatives] for pair_negatives in negatives
    ]
    for path in passages:
        for text in read_passages(path, skipped=skipped):
            texts.add_passage(text)
    for reason, count in skipped.counts.items():
        log.warning("left out while reading: %s: %d", reason, count)
    return texts


def _embed(
    texts: PairTexts, model: Path, folder: Path, scale: Scale, query_prompt: str | None
) -> None:
    folder.mkdir()
    parts = [
        TextsToEmbed("queries", "query", texts.queries, [query_prompt] * len(texts.queries)),
        TextsToEmbed("passages", "passage", texts.passages, [None] * len(texts.passages)),
    ]
    embed(parts, model, folder, SHARD_SIZE, scale.vectors)


def _known_texts(texts: PairTexts, sets: Sequence[EvaluationSet], section: Negatives) -> KnownTexts:
    return find_known_texts(
        texts.queries,
        texts.passages,
        np.array(texts.positive, dtype=np.int64),
        Ragged.of(texts.negatives),
        sets,
        include_evaluation_passages=section.include_evaluation_passages,
    )


def _write(rows: Iterator[dict[str, Any]], out: Path) -> None:
    with atomic_write(out) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
