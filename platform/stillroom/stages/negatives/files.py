"""`stillroom mine`: hard negatives for a user's own files, without a recipe."""

import functools
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.cluster.session import connect
from stillroom.config.languages import AUTO
from stillroom.config.recipe import Negatives
from stillroom.config.scale import Scale
from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.files import read_pairs, read_passages
from stillroom.data.readers.records import SkippedRows
from stillroom.data.text.detection import detect_language
from stillroom.encoders.contract import Role
from stillroom.encoders.files.inputs import folder_prompts
from stillroom.encoders.model_names import find_model, locate_model, resolve_artifact_name
from stillroom.encoders.prompt_names import prompt_by_name
from stillroom.errors import UserError
from stillroom.mining.formats import FORMATS, PairTexts
from stillroom.stages.negatives.known import find_known_texts
from stillroom.stages.negatives.mine import mine
from stillroom.stages.negatives.texts import MiningTexts
from stillroom.stages.vectors.embed import embed
from stillroom.stages.vectors.texts import TextsToEmbed
from stillroom.storage.artifacts import Store
from stillroom.storage.atomic import atomic_write
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import Lookup, Ragged, TextColumn

log = logging.getLogger(__name__)
SHARD_SIZE = 1024  # texts encoded at once
TEXTS_FOLDER = "texts"  # in the folder of working files


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
        folder = Path(work)
        _write_texts(texts, folder)
        miners: dict[str, Path | None] = {}
        for number, (name, model) in enumerate(folders.items()):
            miners[name] = None if model is None else folder / str(number)
            if model is not None:
                _embed(folder, model, str(number), scale, query_prompts.get(name))
        if language == AUTO and "bm25" in names:
            language = detect_language(texts.passages)
        open_texts = functools.partial(_open_texts, folder, language)
        known = find_known_texts(
            open_texts,
            np.array(texts.positive, dtype=np.int64),
            Ragged.of(texts.negatives),
            sets,
            include_evaluation_passages=section.include_evaluation_passages,
            folder=folder / "known",
        )
        mined = mine(
            open_texts,
            known,
            miners,
            section,
            cross_encoder=cross_encoder,
            seed=seed,
            scale=scale.negatives,
            folder=folder,
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


def _write_texts(texts: PairTexts, folder: Path) -> None:
    """Writes the texts as columns, which the actors map instead of being sent them."""
    with TableWriter(folder / TEXTS_FOLDER, texts=["queries", "passages"], numbers={}) as table:
        table.append(
            queries=pa.array(texts.queries, pa.string()),
            passages=pa.array(texts.passages, pa.string()),
        )


def _open_texts(folder: Path, language: str) -> MiningTexts:
    queries, passages = (
        TextColumn(folder / TEXTS_FOLDER, name) for name in ("queries", "passages")
    )
    return MiningTexts(
        queries,
        Lookup.repeated(language, len(queries)),
        passages,
        Lookup.repeated(language, len(passages)),
    )


def _embed(folder: Path, model: Path, name: str, scale: Scale, query_prompt: str | None) -> None:
    (folder / name).mkdir()
    embed(
        functools.partial(_texts_to_embed, folder, query_prompt),
        model,
        folder / name,
        SHARD_SIZE,
        scale.vectors,
    )


def _texts_to_embed(folder: Path, query_prompt: str | None) -> list[TextsToEmbed]:
    texts = _open_texts(folder, AUTO)
    roles: list[tuple[str, Role, Sequence[str], str | None]] = [
        ("queries", "query", texts.queries, query_prompt),
        ("passages", "passage", texts.passages, None),
    ]
    return [
        TextsToEmbed(name, role, column, Lookup[str | None].repeated(prompt, len(column)))
        for name, role, column, prompt in roles
    ]


def _write(rows: Iterator[dict[str, Any]], out: Path) -> None:
    with atomic_write(out) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
