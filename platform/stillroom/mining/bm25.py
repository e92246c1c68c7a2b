"""BM25: the lexical baseline that embedders are compared with, and a miner of negatives."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from stillroom.data.text.analyser import Analyser
from stillroom.data.text.stop_words import import_bm25s
from stillroom.errors import UserError


class Bm25:
    """An index of Lucene's BM25 (k1 1.5, b .75) over the terms of an `Analyser`.

    Args:
        passages: the texts to search.
        languages: of each passage.

    Raises:
        UserError: when the passages contain no words.
    """

    def __init__(self, passages: Sequence[str], languages: Sequence[str]):
        self.passages = len(passages)
        self._analysers = _Analysers()
        # Every new term gets the next number.
        self._numbers: dict[str, int] = defaultdict(lambda: len(self._numbers))
        numbers = [
            [self._numbers[term] for term in terms] for terms in self._terms(passages, languages)
        ]
        if not self._numbers:
            raise UserError("passages", "have no word that BM25 can index", "Leave BM25 out")
        self._index = import_bm25s().BM25(method="lucene", k1=1.5, b=0.75)
        vocabulary = numbers, dict(self._numbers)
        self._index.index(vocabulary, create_empty_token=False, show_progress=False)

    def search(
        self, queries: Sequence[str], languages: Sequence[str], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best passages of each query.

        Args:
            languages: of each query.
            k: how many passages.

        Returns:
            Passage rows, int64 (q, k), best first, -1 where no word is shared; their scores,
            float32.
        """
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for query, score_p in enumerate(self.scores(queries, languages)):
            # Only passages as good as the k-th are sorted.
            kth = np.partition(score_p, -k)[-k] if k < len(score_p) else 0.0
            candidates = np.flatnonzero((score_p >= kth) & (score_p > 0))
            best = candidates[np.argsort(-score_p[candidates], kind="stable")[:k]]
            rows[query, : len(best)] = best
            scores[query, : len(best)] = score_p[best]
        return rows, scores

    def scores(self, queries: Sequence[str], languages: Sequence[str]) -> Iterator[np.ndarray]:
        """Every passage's score, float32 (passages,), query by query."""
        for terms in self._terms(queries, languages):
            numbers = [self._numbers[term] for term in terms if term in self._numbers]
            no_match = np.zeros(self.passages, dtype=np.float32)
            yield self._index.get_scores_from_ids(numbers) if numbers else no_match

    def _terms(self, texts: Sequence[str], languages: Sequence[str]) -> Iterator[list[str]]:
        for text, language in zip(texts, languages, strict=True):
            yield self._analysers[language].terms(text)


class _Analysers(dict[str, Analyser]):
    """Language → its analyser, made on first use."""

    def __missing__(self, language: str) -> Analyser:
        analyser = self[language] = Analyser(language)
        return analyser
