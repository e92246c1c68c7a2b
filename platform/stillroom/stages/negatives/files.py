"""Hard negatives for files of the user's own, without a recipe."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cluster.session import connect
from stillroom.config.recipe import Negatives
from stillroom.config.scale import Scale
from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.files import read_pairs, read_passages
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.model_names import locate, model_of, of_artifact
from stillroom.errors import UserError
from stillroom.mining.formats import FORMATS, Collected
from stillroom.mining.known import texts_of
from stillroom.mining.mined import Mined
from stillroom.stages.negatives.mine import mine
from stillroom.stages.vectors.embed import Part, embed
from stillroom.storage.artifacts import Store
from stillroom.storage.atomic import written

log = logging.getLogger(__name__)

SHARD = 1024  # texts embedded at once


def mine_files(
    models: Sequence[str],
    *,
    pairs: Sequence[Path],
    passages: Sequence[Path],
    evaluation: Sequence[Path],
    out: Path,
    format: str,
    section: Negatives,
    scored: bool,
    seed: int,
    root: str,
    scale: Scale,
) -> dict[str, Any]:
    """Writes the pairs with their negatives as JSONL, all at once.

    Args:
        models: the miners; `bm25`, or a model as named everywhere.
        passages: to mine from, beside the pairs' own.
        evaluation: sets in BEIR layout, whose passages are never to be negatives.
        scored: also writes what positives and negatives score.

    Returns:
        What was kept and rejected.

    Raises:
        UserError: when a file, an option or a model is wrong, before any model is loaded.
    """
    if format not in FORMATS:
        raise UserError("--format", f"{format!r} is unknown", f"Use one of {', '.join(FORMATS)}")
    if out.exists():
        raise UserError(f"--out {out}", "is there already", "Name a new file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}", "its folder does not exist", "Make it, or name another")
    store = Store(root)
    names = [of_artifact(name, store) for name in models]
    folders = {name: None if name == "bm25" else locate(name) for name in names}
    rescore = None if section.rescore is None else model_of(section.rescore, store)
    if rescore is not None:
        os.fspath(rescore)  # it is there
    sets = [read_beir(folder) for folder in evaluation]
    texts = collect(pairs, passages)
    log.info("%d pairs, %d passages", len(texts.queries), len(texts.passages))
    connect(scale)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as work:
        miners: dict[str, Path | None] = {}
        for number, (name, folder) in enumerate(folders.items()):
            miners[name] = None if folder is None else Path(work) / str(number)
            if folder is not None:
                _embed(texts, folder, Path(work) / str(number), scale)
        mined = _mined(texts, sets, miners, rescore, section, seed, scale)
    _write(FORMATS[format](texts, mined, scored), out)
    return {"out": str(out), "pairs": len(texts.queries), **mined.summary()}


def collect(pairs: Sequence[Path], passages: Sequence[Path]) -> Collected:
    """All that the files hold."""
    texts = Collected()
    given = []
    for path in pairs:
        for pair in read_pairs(path):
            texts.queries.append(pair.query)
            texts.positive.append(texts.row(pair.passage))
            given.append(pair.negatives)
    texts.negatives = [[texts.row(text) for text in own] for own in given]
    for path in passages:
        for text in read_passages(path):
            texts.row(text)
    return texts


def _embed(texts: Collected, model: Path, folder: Path, scale: Scale) -> None:
    folder.mkdir()
    parts = [
        Part("queries", "query", texts.queries, [None] * len(texts.queries)),
        Part("passages", "passage", texts.passages, [None] * len(texts.passages)),
    ]
    embed(parts, model, folder, SHARD, scale.vectors)


def _mined(
    texts: Collected,
    sets: Sequence[EvaluationSet],
    miners: dict[str, Path | None],
    rescore: os.PathLike[str] | None,
    section: Negatives,
    seed: int,
    scale: Scale,
) -> Mined:
    positive = np.array(texts.positive, dtype=np.int64)
    known = texts_of(
        texts.queries, texts.passages, positive, texts.negatives, sets, searched=section.searched
    )
    return mine(
        queries=texts.queries,
        passages=texts.passages,
        texts=known,
        miners=miners,
        section=section,
        rescore=rescore,
        seed=seed,
        scale=scale.negatives,
    )


def _write(rows: Iterator[dict[str, Any]], out: Path) -> None:
    with written(out) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
