"""Known relations of queries and passages before mining: copies, answers, evaluation texts.

Texts are compared by 63-bit hashes: of ten million, two are taken for the same once in 200,000
corpora, and the cost is a candidate that is rejected.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.data.cleaning.external_sort import (
    RunWriter,
    SortedRuns,
    hash_borders,
    read_records,
)
from stillroom.data.cleaning.text_keys import (
    BEGINNING_CHARACTERS,
    beginning_key,
    hash_texts,
    normalise,
)
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.safe_read import map_array
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import Ragged
from stillroom.storage.shared_folder import SharedFolder

SORTED_AT_ONCE = 1 << 19  # answers


@dataclass(frozen=True)
class Answers:
    """Which groups of passages are known to answer a query, as pairs without repetitions.

    Attributes:
        query_texts: int64, (answers,), ascending.
        groups: int64, (answers,), ascending among those of the same query.
        most: the largest number of groups that answer one query.
    """

    query_texts: np.ndarray
    groups: np.ndarray
    most: int

    @classmethod
    def of(cls, query_texts: np.ndarray, groups: np.ndarray) -> "Answers":
        """The same pairs, which may be in any order and repeat themselves."""
        order = np.lexsort((groups, query_texts))
        query_texts, groups = query_texts[order], groups[order]
        differs = (np.diff(query_texts) != 0) | (np.diff(groups) != 0)
        is_first = np.concatenate([[True], differs])[: len(order)]
        query_texts, groups = query_texts[is_first], groups[is_first]
        most = int(np.unique(query_texts, return_counts=True)[1].max(initial=0))
        return cls(query_texts, groups, most)

    def contain(self, query_text_q: np.ndarray, group_qk: np.ndarray) -> np.ndarray:
        """Whether each group answers its query, bool (q, k)."""
        if not len(self.groups):
            return np.zeros(group_qk.shape, dtype=bool)
        # A binary search among the groups of each query; most have one or two.
        low, high = (
            np.broadcast_to(
                np.searchsorted(self.query_texts, query_text_q, side)[:, None], group_qk.shape
            ).copy()
            for side in ("left", "right")
        )
        stop, last = high.copy(), len(self.groups) - 1
        while (searching := low < high).any():
            middle = (low + high) // 2
            is_below = self.groups[np.minimum(middle, last)] < group_qk
            low = np.where(searching & is_below, middle + 1, low)
            high = np.where(searching & ~is_below, middle, high)
        return (low < stop) & (self.groups[np.minimum(low, last)] == group_qk)


@dataclass(frozen=True)
class KnownTexts:
    """Known relations of the texts, by row. Arrays may be mapped files.

    Shapes: p passages, q queries (pairs).

    Attributes:
        group_p: int64, not negative; equal for passages that count as copies of one another.
        excluded_p: bool; passages that must never be negatives.
        positive_q: int64; the passage row of each query's positive.
        query_text_q: int64; equal for queries of the same text, which share their positives.
        answers: by `query_text_q` and `group_p`.
        provided: CSR of passage rows that came as negatives with each query: starts (q + 1,), rows.
    """

    group_p: np.ndarray
    excluded_p: np.ndarray
    positive_q: np.ndarray
    query_text_q: np.ndarray
    answers: Answers
    provided: tuple[np.ndarray, np.ndarray]

    def is_answer(self, queries: np.ndarray, rows_qk: np.ndarray) -> np.ndarray:
        """Whether each passage is known to answer its query, or copies one that does: (q, k)."""
        return self.answers.contain(self.query_text_q[queries], self.group_p[rows_qk])

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
        # The first of each group, in the order provided.
        groups = np.unique(self.group_p[rows], return_inverse=True)[1]
        unique = np.sort(np.unique(query * (len(rows) + 1) + groups, return_index=True)[1])
        query, rows = query[unique], rows[unique]
        counts = np.bincount(query, minlength=len(queries))
        column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        fits = column < count
        negatives[query[fits], column[fits]] = rows[fits]
        return negatives


@dataclass(frozen=True)
class QueryHashes:
    """Of neighbouring queries, int64, (n,).

    Attributes:
        texts: as `KnownTexts.query_text_q`.
        groups: of passages that begin as the query does.
    """

    texts: np.ndarray
    groups: np.ndarray


def hash_queries(queries: Sequence[str]) -> QueryHashes:
    """Hashes of neighbouring queries."""
    normalised = [normalise(text) for text in queries]
    return QueryHashes(_hash(normalised), _hash(text[:BEGINNING_CHARACTERS] for text in normalised))


def hash_groups(passages: Iterable[str]) -> np.ndarray:
    """The group of each passage, int64 (n,): passages that begin alike are of one group."""
    return _hash(map(beginning_key, passages))


def excluded_groups(sets: Iterable[EvaluationSet], *, answers_only: bool) -> np.ndarray:
    """Groups of the sets' passages: of all, or of those that answer a query of their set."""
    return hash_groups(
        text for evaluation_set in sets for text in _passages(evaluation_set, answers_only)
    )


def write_known_texts(
    folder: Path,
    passages: Iterable[np.ndarray],
    queries: Iterable[QueryHashes],
    positive_q: np.ndarray,
    provided: Ragged,
    *,
    excluded: np.ndarray,
    excluded_rows: np.ndarray,
) -> KnownTexts:
    """Writes what is known into files, and maps them: memory holds a part of it.

    Args:
        passages: the groups of neighbouring passages, all of them in order.
        queries: the hashes of neighbouring queries, all of them in order.
        positive_q: the passage row of each query's positive.
        provided: the passage rows that came with each query as negatives.
        excluded: groups of passages that must not be negatives.
        excluded_rows: further passages that must not be.
    """
    with TableWriter(folder, texts=(), numbers={"groups": np.int64, "excluded": np.bool_}) as table:
        first = 0
        for groups in passages:
            rows = first + np.arange(len(groups))
            is_excluded = np.isin(groups, excluded) | np.isin(rows, excluded_rows)
            table.append(groups=groups, excluded=is_excluded)
            first += len(groups)
    group_p = map_array(folder / "groups.npy")
    pairs = SharedFolder(str(folder / "pairs"))
    borders = hash_borders(2 * len(positive_q), SORTED_AT_ONCE)
    writer = RunWriter(pairs, "answers", borders, SORTED_AT_ONCE)
    with TableWriter(folder, texts=(), numbers={"query-texts": np.int64}) as table:
        first = 0
        for hashes in queries:
            table.append(**{"query-texts": hashes.texts})
            positive_groups = group_p[positive_q[first : first + len(hashes.texts)]]
            # A query's own text may be a passage, where both are of one kind.
            for groups in (positive_groups, hashes.groups):
                writer.add(hashes.texts << 1, groups)  # of 64 bits, over which ranges are spread
            first += len(hashes.texts)
    answers = _write_answers(folder / "answers", pairs, SortedRuns(writer.finish()), len(borders))
    pairs.delete()
    return KnownTexts(
        group_p=group_p,
        excluded_p=map_array(folder / "excluded.npy"),
        positive_q=positive_q,
        query_text_q=map_array(folder / "query-texts.npy"),
        answers=answers,
        provided=(provided.starts, provided.numbers),
    )


def _write_answers(folder: Path, pairs: SharedFolder, runs: SortedRuns, ranges: int) -> Answers:
    most = 0
    numbers = {"query-texts": np.int64, "groups": np.int64}
    with TableWriter(folder, texts=(), numbers=numbers) as table:
        for number in range(ranges):
            texts, groups = read_records(pairs, runs.slices(number))[:2]
            part = Answers.of((texts >> np.uint64(1)).astype(np.int64), groups.astype(np.int64))
            table.append(**{"query-texts": part.query_texts, "groups": part.groups})
            most = max(most, part.most)  # all answers of a query are in one range
    return Answers(map_array(folder / "query-texts.npy"), map_array(folder / "groups.npy"), most)


def _passages(evaluation_set: EvaluationSet, answers_only: bool) -> Iterator[str]:
    if not answers_only:
        yield from evaluation_set.passages.values()
        return
    for grades in evaluation_set.qrels.values():
        yield from (evaluation_set.passages[id] for id, grade in grades.items() if grade > 0)


def _hash(texts: Iterable[str]) -> np.ndarray:
    return (hash_texts(texts) >> np.uint64(1)).astype(np.int64)
