"""Mined negatives as rows of the files that other trainers read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stillroom.mining.mined import MinedNegatives
from stillroom.storage.columns import Ragged


@dataclass(frozen=True)
class PairTexts:
    """Pairs and passages of files; equal texts share one passage row.

    Attributes:
        positive: the passage row of each query's positive.
        negatives: the passage rows that came as negatives with each query.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    positive: np.ndarray
    negatives: Ragged


class _Pair(NamedTuple):
    """A query with its positive and negatives, as passage rows and scores."""

    number: int
    query: str
    positive: int
    positive_score: float
    negatives: list[tuple[int, float]]


def _pairs(texts: PairTexts, mined: MinedNegatives) -> Iterator[_Pair]:
    for number, query in enumerate(texts.queries):
        exists = mined.negatives[number] >= 0
        rows = mined.negatives[number][exists].tolist()
        scores = mined.scores[number][exists].tolist()
        yield _Pair(
            number,
            query,
            int(texts.positive[number]),
            float(mined.positive_scores[number]),
            list(zip(rows, scores, strict=True)),
        )


def sentence_transformers(
    texts: PairTexts, mined: MinedNegatives, with_scores: bool
) -> Iterator[dict[str, Any]]:
    """Triplets, one per negative, so none of a pair without negatives; `scores` are those of the
    positive and the negative, as `mine_hard_negatives` writes and MarginMSELoss reads them.
    """
    for pair in _pairs(texts, mined):
        for row, score in pair.negatives:
            scores = {"scores": [pair.positive_score, score]} if with_scores else {}
            yield {
                "anchor": pair.query,
                "positive": texts.passages[pair.positive],
                "negative": texts.passages[row],
                **scores,
            }


def flagembedding(
    texts: PairTexts, mined: MinedNegatives, with_scores: bool
) -> Iterator[dict[str, Any]]:
    """A row per query, with lists of texts and of scores."""
    for pair in _pairs(texts, mined):
        scores = {
            "pos_scores": [pair.positive_score],
            "neg_scores": [score for _, score in pair.negatives],
        }
        yield {
            "query": pair.query,
            "pos": [texts.passages[pair.positive]],
            "neg": [texts.passages[row] for row, _ in pair.negatives],
            **(scores if with_scores else {}),
        }


def tevatron(
    texts: PairTexts, mined: MinedNegatives, with_scores: bool
) -> Iterator[dict[str, Any]]:
    """A row per query, with lists of documents."""

    def document(row: int, score: float) -> dict[str, Any]:
        extra = {"score": score} if with_scores else {}
        return {"docid": str(row), "title": "", "text": texts.passages[row], **extra}

    for pair in _pairs(texts, mined):
        yield {
            "query_id": str(pair.number),
            "query": pair.query,
            "positive_passages": [document(pair.positive, pair.positive_score)],
            "negative_passages": [document(row, score) for row, score in pair.negatives],
        }


# name → (texts, mined, with scores) → rows
FORMATS: dict[str, Callable[[PairTexts, MinedNegatives, bool], Iterator[dict[str, Any]]]] = {
    "sentence-transformers": sentence_transformers,
    "flagembedding": flagembedding,
    "tevatron": tevatron,
}
