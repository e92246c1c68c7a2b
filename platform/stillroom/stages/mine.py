"""Hard negatives for files of the user's own, without a recipe."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.artifacts import Store
from stillroom.atomic import written
from stillroom.config.recipe import Negatives
from stillroom.config.scale import Scale
from stillroom.encoders.locate import locate, model_of, of_artifact
from stillroom.errors import UserError
from stillroom.stages.connection import connect
from stillroom.stages.negatives import Mined, mine, texts_of
from stillroom.stages.vectors import Part, embed
from stillroom.text.dedupe import text_key
from stillroom.text.formats import EvaluationSet, read_beir, read_pairs, read_passages

log = logging.getLogger(__name__)

SHARD = 1024  # texts embedded at once


@dataclass
class Collected:
    """Pairs and passages of files; equal texts are one passage row."""

    queries: list[str] = field(default_factory=list)
    positive: list[int] = field(default_factory=list)
    negatives: list[list[int]] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # text key → row

    def row(self, text: str) -> int:
        row = self.rows.setdefault(text_key(text), len(self.passages))
        if row == len(self.passages):
            self.passages.append(text)
        return row


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


# --- formats --------------------------------------------------------------------------------


def _pairs(texts: Collected, mined: Mined) -> Iterator[tuple[int, str, int, float, Any]]:
    """(number, query, positive's row, its score, [(negative's row, its score)]) of each pair."""
    for number, query in enumerate(texts.queries):
        there = mined.negatives[number] >= 0
        rows = mined.negatives[number][there].tolist()
        scores = mined.scores[number][there].tolist()
        own = float(mined.positive_scores[number])
        yield number, query, texts.positive[number], own, list(zip(rows, scores, strict=True))


def sentence_transformers(texts: Collected, mined: Mined, scored: bool) -> Iterator[dict[str, Any]]:
    """Triplets, one a negative; `label` is by how much the positive scores more, which is what
    MarginMSELoss learns from."""
    for _, query, positive, own, negatives in _pairs(texts, mined):
        for row, score in negatives:
            label = {"label": own - score} if scored else {}
            yield {
                "anchor": query,
                "positive": texts.passages[positive],
                "negative": texts.passages[row],
                **label,
            }


def flagembedding(texts: Collected, mined: Mined, scored: bool) -> Iterator[dict[str, Any]]:
    for _, query, positive, own, negatives in _pairs(texts, mined):
        scores = {"pos_scores": [own], "neg_scores": [score for _, score in negatives]}
        yield {
            "query": query,
            "pos": [texts.passages[positive]],
            "neg": [texts.passages[row] for row, _ in negatives],
            **(scores if scored else {}),
        }


def tevatron(texts: Collected, mined: Mined, scored: bool) -> Iterator[dict[str, Any]]:
    def passage(row: int, score: float) -> dict[str, Any]:
        own = {"score": score} if scored else {}
        return {"docid": str(row), "title": "", "text": texts.passages[row], **own}

    for number, query, positive, own, negatives in _pairs(texts, mined):
        yield {
            "query_id": str(number),
            "query": query,
            "positive_passages": [passage(positive, own)],
            "negative_passages": [passage(row, score) for row, score in negatives],
        }


FORMATS: dict[str, Callable[[Collected, Mined, bool], Iterator[dict[str, Any]]]] = {
    "sentence-transformers": sentence_transformers,
    "flagembedding": flagembedding,
    "tevatron": tevatron,
}


def _write(rows: Iterator[dict[str, Any]], out: Path) -> None:
    with written(out) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
