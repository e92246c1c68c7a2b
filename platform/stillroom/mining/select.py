"""Which of the passages found are hard negatives, and why the others are not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

POSITIVE = "the positive"

KNOWN = "a copy of it or another positive of the query"

BARRED = "of an evaluation set"

GIVEN = "given already"

CLOSE = "too close to the positive"

ABOVE = "above the ceiling"

REPEATED = "a copy of a better one"

SKIPPED = "skipped"

REASONS = (POSITIVE, KNOWN, BARRED, GIVEN, CLOSE, ABOVE, REPEATED, SKIPPED)


@dataclass(frozen=True)
class Rule:
    """Positive-aware mining: TopK-PercPos, TopK-MarginPos and TopK-Abs (NV-Retriever, arXiv
    2407.15831). A limit that is None does not hold; of several the lowest does.

    Attributes:
        max_share_of_positive: a candidate that scores above this share of the positive's own
            score is taken for an unjudged answer. A positive below 0 is meant to lose as much
            as one above it, so that the limit is always on its lower side.
        margin: so far below the positive's score a candidate must be.
        max_score: the most that a candidate may score, whatever the positive does.
        skip_first: how many of the best that remain are passed over.
        sample_from: how many after those are drawn from.
    """

    max_share_of_positive: float | None
    margin: float | None
    max_score: float | None
    skip_first: int
    sample_from: int
    per_query: int
    strategy: Literal["random", "top"]

    @property
    def depth(self) -> int:
        """Candidates to search for, a query: as many again as often as three are refused."""
        return 4 * self.sample_from + self.skip_first


class Texts:
    """What is known of the texts, by row.

    Attributes:
        group_p: int64; equal for passages that count as copies of one another.
        barred_p: bool; passages that are never to be negatives.
        positive_q: int64; the passage row of each query's positive.
        asked_q: int64; equal for queries of the same text, whose positives are shared.
        given: CSR of passage rows that came as negatives with each query: starts (q + 1,), rows.
        most_known: the most groups that are known for one query.
    """

    def __init__(
        self,
        *,
        group_p: np.ndarray,
        positive_q: np.ndarray,
        asked_q: np.ndarray,
        barred_p: np.ndarray | None = None,
        given: tuple[np.ndarray, np.ndarray] | None = None,
        also_known: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """
        Args:
            also_known: further (queries, passage rows) that answer, such as a query's own text.
        """
        self.group_p, self.positive_q, self.asked_q = group_p, positive_q, asked_q
        self.barred_p = np.zeros(len(group_p), dtype=bool) if barred_p is None else barred_p
        nothing = np.zeros(len(positive_q) + 1, dtype=np.int64), np.empty(0, dtype=np.int64)
        self.given = nothing if given is None else given
        self.width = int(group_p.max(initial=0)) + 1
        codes = asked_q * self.width + group_p[positive_q]
        if also_known is not None:
            queries, rows = also_known
            codes = np.concatenate([codes, asked_q[queries] * self.width + group_p[rows]])
        self.known = np.unique(codes)  # (query's text, passage's group) as one number
        of_query = np.unique(self.known // self.width, return_counts=True)[1]
        self.most_known = int(of_query.max(initial=0))

    def answers(self, queries: np.ndarray, rows_qk: np.ndarray) -> np.ndarray:
        """Whether each passage is known to answer its query, or copies one that does."""
        codes = self.asked_q[queries][:, None] * self.width + self.group_p[rows_qk]
        place = np.minimum(np.searchsorted(self.known, codes), max(0, len(self.known) - 1))
        return self.known[place] == codes

    def given_to(self, queries: np.ndarray, most: int) -> np.ndarray:
        """The first rows that came with each of some neighbouring queries, without its answers
        and repetitions: int64 (q, most), -1 for none."""
        starts, rows = self.given
        first, last = starts[queries[0]], starts[queries[-1] + 1]
        found = np.full((len(queries), most), -1, dtype=np.int64)
        if first == last:
            return found
        query = np.repeat(np.arange(len(queries)), np.diff(starts[queries[0] : queries[-1] + 2]))
        rows = rows[first:last]
        usable = ~self.answers(queries[query], rows[:, None])[:, 0] & ~self.barred_p[rows]
        query, rows = query[usable], rows[usable]
        pairs = query * self.width + self.group_p[rows]
        once = np.sort(np.unique(pairs, return_index=True)[1])  # in the order given
        query, rows = query[once], rows[once]
        counts = np.bincount(query, minlength=len(queries))
        place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        fits = place < most
        found[query[fits], place[fits]] = rows[fits]
        return found


@dataclass(frozen=True)
class Selected:
    """Negatives as passage rows, int64 (q, per_query), -1 for none; their scores, float32, nan
    for none and for those that were given; and reason → how many candidates it dropped."""

    negatives: np.ndarray
    scores: np.ndarray
    rejected: dict[str, int]


def select(
    scores: np.ndarray,
    rows: np.ndarray,
    *,
    positive_score_q: np.ndarray,
    texts: Texts,
    rule: Rule,
    seed: int,
    first: int = 0,
) -> Selected:
    """Negatives of neighbouring queries: those given with them, then those mined.

    What is given is taken whatever it scores, unless it is known to answer or barred.

    Args:
        scores, rows: candidates of each query, (q, k), best first, row -1 where there is none.
        positive_score_q: the positives' own scores.
        first: which of all queries the first row is.
    """
    queries = first + np.arange(len(rows))
    given = texts.given_to(queries, rule.per_query)
    left = rows >= 0
    safe = np.where(left, rows, 0)
    group = np.where(left, texts.group_p[safe], -1)
    rejected = {}
    for reason, found in _reasons(scores, safe, group, given, positive_score_q, texts, rule, first):
        rejected[reason] = int((left & found).sum())
        left &= ~found
    # A repetition of what was refused is refused with it; this is about what is left.
    repeated = left & _repeated(np.where(left, group, -1))
    rejected[REPEATED] = int(repeated.sum())
    left &= ~repeated
    rank = np.cumsum(left, axis=1)  # 1 for the best that is left
    skipped = left & (rank <= rule.skip_first)
    rejected[SKIPPED] = int(skipped.sum())
    pool = left & ~skipped & (rank <= rule.skip_first + rule.sample_from)
    mined, mined_scores = _drawn(pool, scores, rows, rule, seed, queries)
    # The given come first, then as many of the mined as there is room for.
    both = np.concatenate([given, mined], axis=1)
    unscored = np.full(given.shape, np.nan, dtype=np.float32)
    both_scores = np.concatenate([unscored, mined_scores], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, : rule.per_query]
    return Selected(
        np.take_along_axis(both, order, 1),
        np.take_along_axis(both_scores, order, 1),
        {reason: rejected[reason] for reason in REASONS},
    )


def _reasons(
    scores: np.ndarray,
    rows: np.ndarray,
    group: np.ndarray,
    given: np.ndarray,
    positive_score_q: np.ndarray,
    texts: Texts,
    rule: Rule,
    first: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """(reason, whom it refuses (q, k)), the one that is named first where several hold."""
    queries = first + np.arange(len(rows))
    yield POSITIVE, rows == texts.positive_q[queries][:, None]
    yield KNOWN, texts.answers(queries, rows)
    yield BARRED, texts.barred_p[rows]
    of_given = np.where(given >= 0, texts.group_p[given], -2)
    yield GIVEN, np.logical_or.reduce([group == one[:, None] for one in of_given.T])
    yield CLOSE, scores > _limit(positive_score_q, rule)[:, None]
    yield ABOVE, scores > (np.inf if rule.max_score is None else rule.max_score)


def _limit(positive_score_q: np.ndarray, rule: Rule) -> np.ndarray:
    limit = np.full(len(positive_score_q), np.inf)
    if rule.max_share_of_positive is not None:
        share = rule.max_share_of_positive
        limit = positive_score_q * np.where(positive_score_q > 0, share, 2 - share)
    if rule.margin is not None:
        limit = np.minimum(limit, positive_score_q - rule.margin)
    return limit


def _repeated(group: np.ndarray) -> np.ndarray:
    """Whether the same group stands further left in a row; -1 is none."""
    order = np.argsort(group, axis=1, kind="stable")
    ordered = np.take_along_axis(group, order, 1)
    again = np.zeros(group.shape, dtype=bool)
    again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    found = np.empty_like(again)
    np.put_along_axis(found, order, again, 1)
    return found


def _drawn(
    pool: np.ndarray,
    scores: np.ndarray,
    rows: np.ndarray,
    rule: Rule,
    seed: int,
    queries: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of those taken from each query's pool, best first, (q, per_query)."""
    taken = pool
    if rule.strategy == "random":
        # The lowest of random numbers are a uniform draw. Each hangs on its query and row alone,
        # so that another query, or another block, changes nothing for this one.
        luck = np.where(pool, _luck(seed, queries[:, None], rows), np.uint64(2**64 - 1))
        most = min(rule.per_query, luck.shape[1])
        last = np.sort(luck, axis=1)[:, most - 1 : most]
        taken = pool & (luck <= last)
    place = np.argsort(~taken, axis=1, kind="stable")[:, : rule.per_query]
    there = np.take_along_axis(taken, place, 1)
    width = rule.per_query - place.shape[1]
    mined = np.where(there, np.take_along_axis(rows, place, 1), -1)
    found = np.where(there, np.take_along_axis(scores, place, 1), np.float32(np.nan))
    fill = ((0, 0), (0, width))
    return (
        np.pad(mined, fill, constant_values=-1),
        np.pad(found.astype(np.float32), fill, constant_values=np.nan),
    )


def _luck(seed: int, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Random uint64 as a function of three numbers, by SplitMix64's finaliser."""
    with np.errstate(over="ignore"):
        state = np.full((1, 1), seed, dtype=np.uint64)
        for number in (queries, rows):
            state = state + np.uint64(0x9E3779B97F4A7C15) * (
                number.astype(np.uint64) + np.uint64(1)
            )
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
