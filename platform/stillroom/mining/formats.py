"""TODO docstring: mining/formats.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stillroom.data.cleaning.text_keys import text_key
from stillroom.mining.mined import Mined


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
