"""BM25: the lexical baseline that embedders are compared with, and a miner of negatives."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import Stemmer

from stillroom.errors import UserError


def _bm25s() -> Any:
    """Imports bm25s with JAX on the CPU.

    Where JAX is installed, bm25s uses it on import: on a GPU that would take most of its memory,
    and fail in a process that sees no GPU.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    return bm25s


class Bm25:
    """An index of Lucene's BM25 (k1 1.5, b .75, English stop words, Snowball stemmer).

    Raises:
        UserError: when the passages contain no words.
    """

    def __init__(self, passages: Sequence[str]):
        self.passages = len(passages)
        self.stemmer = Stemmer.Stemmer("english")
        words = self._words(passages)
        if not any(words):
            raise UserError("passages", "have no word that BM25 can index", "Leave BM25 out")
        self.index = _bm25s().BM25(method="lucene", k1=1.5, b=0.75)
        self.index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best passages of each query.

        Returns:
            Passage rows, int64 (q, k), best first, -1 where no word is shared; their scores,
            float32.
        """
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for query, score_p in enumerate(self.scores(queries)):
            # Only passages as good as the k-th are sorted.
            kth = np.partition(score_p, -k)[-k] if k < len(score_p) else 0.0
            candidates = np.flatnonzero((score_p >= kth) & (score_p > 0))
            best = candidates[np.argsort(-score_p[candidates], kind="stable")[:k]]
            rows[query, : len(best)] = best
            scores[query, : len(best)] = score_p[best]
        return rows, scores

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """Every passage's score, float32 (passages,), query by query."""
        for words in self._words(queries):
            no_match = np.zeros(self.passages, dtype=np.float32)
            yield self.index.get_scores(words) if words else no_match

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return _bm25s().tokenize(
            list(texts), stopwords="en", stemmer=self.stemmer, return_ids=False, show_progress=False
        )
