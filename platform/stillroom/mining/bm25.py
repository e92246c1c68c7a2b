"""The lexical baseline that every embedder must be held against."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import Stemmer

from stillroom.errors import UserError


def _bm25s() -> Any:
    """Where JAX is installed, bm25s computes with it as it is imported: on a GPU that would take
    most of its memory, and fail in a process which may see none."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    return bm25s


class Bm25:
    """An index of Lucene's BM25 (k1 1.5, b .75, English stop words, Snowball stemmer).

    Raises:
        UserError: when there is no word in it.
    """

    def __init__(self, passages: Sequence[str]):
        self.passages = len(passages)
        self.stemmer = Stemmer.Stemmer("english")
        words = self._words(passages)
        if not any(words):
            raise UserError("passages", "hold no word that BM25 could index", "Leave BM25 out")
        self.index = _bm25s().BM25(method="lucene", k1=1.5, b=0.75)
        self.index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the best passages, int64 (q, k), best first and -1 where no word is shared,
        and their scores, float32."""
        places = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for row, found in enumerate(self.scores(queries)):
            # Only what is as good as the k-th is sorted.
            kth = np.partition(found, -k)[-k] if k < len(found) else 0.0
            candidates = np.flatnonzero((found >= kth) & (found > 0))
            best = candidates[np.argsort(-found[candidates], kind="stable")[:k]]
            places[row, : len(best)] = best
            scores[row, : len(best)] = found[best]
        return places, scores

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """Every passage's score, float32 (passages,), a query."""
        for words in self._words(queries):
            nothing = np.zeros(self.passages, dtype=np.float32)
            yield self.index.get_scores(words) if words else nothing

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return _bm25s().tokenize(
            list(texts), stopwords="en", stemmer=self.stemmer, return_ids=False, show_progress=False
        )
