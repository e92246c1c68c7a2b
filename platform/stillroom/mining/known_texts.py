"""Known relations of queries and passages before mining: copies, answers, evaluation texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from stillroom.data.cleaning.text_keys import beginning_key, text_key
from stillroom.data.readers.records import EvaluationSet
from stillroom.storage.columns import Ragged


class KnownTexts:
    """Known relations of the texts, by row.

    Shapes: p passages, q queries (pairs).

    Attributes:
        group_p: int64; equal for passages that count as copies of one another.
        excluded_p: bool; passages that must never be negatives.
        positive_q: int64; the passage row of each query's positive.
        query_text_q: int64; equal for queries of the same text, which share their positives.
        provided: CSR of passage rows that came as negatives with each query: starts (q + 1,), rows.
        answer_codes: (query's text, group of a passage that answers it) as one number, sorted.
        most_answers: the largest number of groups that answer one query.
    """

    def __init__(
        self,
        *,
        group_p: np.ndarray,
        positive_q: np.ndarray,
        query_text_q: np.ndarray,
        excluded_p: np.ndarray | None = None,
        provided: tuple[np.ndarray, np.ndarray] | None = None,
        extra_answers: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """
        Args:
            extra_answers: further answers as (queries, passage rows), such as a query's own text.
        """
        self.group_p, self.positive_q, self.query_text_q = group_p, positive_q, query_text_q
        self.excluded_p = np.zeros(len(group_p), dtype=bool) if excluded_p is None else excluded_p
        none = np.zeros(len(positive_q) + 1, dtype=np.int64), np.empty(0, dtype=np.int64)
        self.provided = none if provided is None else provided
        self.groups = int(group_p.max(initial=0)) + 1
        codes = query_text_q * self.groups + group_p[positive_q]
        if extra_answers is not None:
            queries, rows = extra_answers
            codes = np.concatenate([codes, query_text_q[queries] * self.groups + group_p[rows]])
        self.answer_codes = np.unique(codes)
        answers = np.unique(self.answer_codes // self.groups, return_counts=True)[1]
        self.most_answers = int(answers.max(initial=0))

    def is_answer(self, queries: np.ndarray, rows_qk: np.ndarray) -> np.ndarray:
        """Whether each passage is known to answer its query, or copies one that does: (q, k)."""
        codes = self.query_text_q[queries][:, None] * self.groups + self.group_p[rows_qk]
        last = max(0, len(self.answer_codes) - 1)
        nearest = np.minimum(np.searchsorted(self.answer_codes, codes), last)
        return self.answer_codes[nearest] == codes

    def provided_negatives(self, queries: np.ndarray, count: int) -> np.ndarray:
        """The first usable passages that came as negatives with each query.

        Answers, excluded passages and repetitions are left out.

        Args:
            queries: neighbouring queries, ascending.

        Returns:
            Passage rows, int64 (q, count), -1 for none.
        """
        starts, rows = self.provided
        first, last = starts[queries[0]], starts[queries[-1] + 1]
        negatives = np.full((len(queries), count), -1, dtype=np.int64)
        if first == last:
            return negatives
        query = np.repeat(np.arange(len(queries)), np.diff(starts[queries[0] : queries[-1] + 2]))
        rows = rows[first:last]
        usable = ~self.is_answer(queries[query], rows[:, None])[:, 0] & ~self.excluded_p[rows]
        query, rows = query[usable], rows[usable]
        codes = query * self.groups + self.group_p[rows]
        unique = np.sort(np.unique(codes, return_index=True)[1])  # in the order provided
        query, rows = query[unique], rows[unique]
        counts = np.bincount(query, minlength=len(queries))
        column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        fits = column < count
        negatives[query[fits], column[fits]] = rows[fits]
        return negatives


def find_known_texts(
    queries: Sequence[str],
    passages: Sequence[str],
    positive: np.ndarray,
    provided: Ragged,
    evaluation: Iterable[EvaluationSet],
    *,
    include_evaluation_passages: bool,
) -> KnownTexts:
    """Finds which passages are copies, which answer a query, and which must never be negatives.

    Args:
        positive: the passage row of each query's positive.
        provided: the passage rows that came with each query as negatives.
        evaluation: sets whose passages must not be negatives.
        include_evaluation_passages: only the answers of those sets are excluded, not all passages.
    """
    hash_p = _hashes(passages, beginning_key)
    hash_q = _hashes(queries, beginning_key)
    groups, group_p = np.unique(hash_p, return_inverse=True)
    # A query's own text may be a passage, where both are of one kind.
    group_q = np.minimum(np.searchsorted(groups, hash_q), len(groups) - 1)
    also_passages = np.flatnonzero(groups[group_q] == hash_q)
    row_of_group = np.empty(len(groups), dtype=np.int64)
    row_of_group[group_p] = np.arange(len(passages))
    excluded = [
        text
        for evaluation_set in evaluation
        for text in _excluded_passages(evaluation_set, include_evaluation_passages)
    ]
    return KnownTexts(
        group_p=group_p.astype(np.int64),
        excluded_p=np.isin(hash_p, _hashes(excluded, beginning_key)),
        positive_q=np.asarray(positive, dtype=np.int64),
        query_text_q=np.unique(_hashes(queries, text_key), return_inverse=True)[1].astype(np.int64),
        provided=(provided.starts, provided.numbers),
        extra_answers=(also_passages, row_of_group[group_q[also_passages]]),
    )


def _excluded_passages(evaluation_set: EvaluationSet, answers_only: bool) -> Iterator[str]:
    """Passages that must not be negatives: all of a set, or those that answer its queries."""
    if not answers_only:
        yield from evaluation_set.passages.values()
        return
    for grades in evaluation_set.qrels.values():
        yield from (evaluation_set.passages[id] for id, grade in grades.items() if grade > 0)


def _hashes(texts: Sequence[str], key: Callable[[str], str]) -> np.ndarray:
    """A uint64 of each text's key: two of a million texts collide once in 40 million corpora."""
    digests = (
        blake2b(key(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
