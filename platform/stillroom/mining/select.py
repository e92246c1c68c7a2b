"""Positive-aware selection: which search results are hard negatives, and why others are not.

Shapes: q queries, k candidates of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillroom.mining.known_texts import KnownTexts

POSITIVE = "the positive"
KNOWN = "a copy of the positive, or another positive of the query"
EVALUATION = "in an evaluation set"
PROVIDED = "provided with the pair already"
NEAR_POSITIVE = "too close to the positive"
ABOVE_MAX_SCORE = "above max_score"
REPEATED = "a copy of a better candidate"
SKIPPED = "passed over by skip_first"
REASONS = (POSITIVE, KNOWN, EVALUATION, PROVIDED, NEAR_POSITIVE, ABOVE_MAX_SCORE, REPEATED, SKIPPED)


@dataclass(frozen=True)
class SelectionRule:
    """Positive-aware mining: TopK-PercPos, TopK-MarginPos and TopK-Abs (NV-Retriever, arXiv
    2407.15831). A limit of None does not apply; the lowest of several limits applies.

    Limits are on the scores that candidates have: cosines, inner products of raw vectors, which may
    be some tens or below 0, or a cross-encoder's. A share of the positive means the same at every
    scale of scores; `absolute_margin` and `max_score` have the scores' own unit.

    Attributes:
        max_share_of_positive: a candidate that scores above this share of the positive's score
            counts as an unjudged answer. For a positive below 0, the limit is below it by the same
            distance.
        absolute_margin: a candidate must score at least this much less than the positive.
        max_score: the highest score of a candidate, independent of the positive's score.
        skip_first: how many of the best remaining candidates are skipped.
        sample_from: how many candidates after those are sampled from.
        per_query: negatives of each query.
        strategy: samples at random, or takes the best.
    """

    max_share_of_positive: float | None
    absolute_margin: float | None
    max_score: float | None
    skip_first: int
    sample_from: int
    per_query: int
    strategy: Literal["random", "top"]

    @property
    def search_depth(self) -> int:
        """Candidates to search for, per query: enough even if three of four are rejected."""
        return 4 * self.sample_from + self.skip_first


@dataclass(frozen=True)
class SelectedNegatives:
    """The negatives of some queries.

    Attributes:
        negatives: passage rows, int64 (q, per_query), -1 for none.
        scores: float32 (q, per_query), nan for none and for provided negatives.
        rejected: reason → number of candidates that it rejected.
    """

    negatives: np.ndarray
    scores: np.ndarray
    rejected: dict[str, int]


def select_negatives(
    scores: np.ndarray,
    rows: np.ndarray,
    *,
    positive_score_q: np.ndarray,
    texts: KnownTexts,
    rule: SelectionRule,
    seed: int,
    first: int = 0,
) -> SelectedNegatives:
    """The negatives of neighbouring queries: those provided with them, then mined ones.

    Provided negatives are taken with any score, unless they are answers or excluded.

    Args:
        scores, rows: candidates of each query, (q, k), best first, row -1 where there is none.
        positive_score_q: the positives' scores.
        first: the number of the first row's query among all queries.
    """
    queries = first + np.arange(len(rows))
    provided = texts.provided_negatives(queries, rule.per_query)
    left = rows >= 0
    safe = np.where(left, rows, 0)
    group = np.where(left, texts.group_p[safe], -1)
    candidates = _Candidates(queries, safe, scores, group, provided, positive_score_q)
    rejected = {}
    for reason, rejects in _rejections(candidates, texts, rule):
        rejected[reason] = int((left & rejects).sum())
        left &= ~rejects
    # Copies of a rejected candidate are rejected with it; these are copies of one that is left.
    repeated = left & _repeated(np.where(left, group, -1))
    rejected[REPEATED] = int(repeated.sum())
    left &= ~repeated
    rank = np.cumsum(left, axis=1)  # 1 for the best that is left
    skipped = left & (rank <= rule.skip_first)
    rejected[SKIPPED] = int(skipped.sum())
    pool = left & ~skipped & (rank <= rule.skip_first + rule.sample_from)
    mined, mined_scores = _sample(pool, scores, rows, rule, seed, queries)
    # Provided negatives first, then as many mined ones as there is room for.
    both = np.concatenate([provided, mined], axis=1)
    unscored = np.full(provided.shape, np.nan, dtype=np.float32)
    both_scores = np.concatenate([unscored, mined_scores], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, : rule.per_query]
    return SelectedNegatives(
        np.take_along_axis(both, order, 1),
        np.take_along_axis(both_scores, order, 1),
        {reason: rejected[reason] for reason in REASONS},
    )


@dataclass(frozen=True)
class _Candidates:
    """The inputs of the rules.

    Attributes:
        queries: their numbers, (q,).
        rows, scores, group: of the candidates, (q, k); the group is -1 where there is none.
        provided: passage rows of the provided negatives, (q, per_query), -1 for none.
        positive_score: (q,).
    """

    queries: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    group: np.ndarray
    provided: np.ndarray
    positive_score: np.ndarray


def _rejections(
    candidates: _Candidates, texts: KnownTexts, rule: SelectionRule
) -> Iterator[tuple[str, np.ndarray]]:
    """(reason, which candidates it rejects, (q, k)). The first of several reasons counts."""
    c = candidates
    yield POSITIVE, c.rows == texts.positive_q[c.queries][:, None]
    yield KNOWN, texts.is_answer(c.queries, c.rows)
    yield EVALUATION, texts.excluded_p[c.rows]
    provided_group = np.where(c.provided >= 0, texts.group_p[c.provided], -2)
    yield PROVIDED, np.logical_or.reduce([c.group == col[:, None] for col in provided_group.T])
    yield NEAR_POSITIVE, c.scores > _limit(c.positive_score, rule)[:, None]
    yield ABOVE_MAX_SCORE, c.scores > (np.inf if rule.max_score is None else rule.max_score)


def _limit(positive_score_q: np.ndarray, rule: SelectionRule) -> np.ndarray:
    """The highest allowed score of a candidate, by its positive, (q,)."""
    limit = np.full(len(positive_score_q), np.inf)
    if rule.max_share_of_positive is not None:
        share = rule.max_share_of_positive
        limit = positive_score_q * np.where(positive_score_q > 0, share, 2 - share)
    if rule.absolute_margin is not None:
        limit = np.minimum(limit, positive_score_q - rule.absolute_margin)
    return limit


def _repeated(group: np.ndarray) -> np.ndarray:
    """Whether the same group is further left in the row; -1 is no group."""
    order = np.argsort(group, axis=1, kind="stable")
    ordered = np.take_along_axis(group, order, 1)
    again = np.zeros(group.shape, dtype=bool)
    again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, 1)
    return repeated


def _sample(
    pool: np.ndarray,
    scores: np.ndarray,
    rows: np.ndarray,
    rule: SelectionRule,
    seed: int,
    queries: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the candidates taken from each query's pool, best first, (q, per_query).

    Args:
        pool: which candidates may be taken, (q, k).
    """
    taken = pool
    if rule.strategy == "random":
        # The lowest of random numbers are a uniform sample. Each depends on its query and row only,
        # so that other queries and blocks do not affect it.
        random = np.where(pool, _random_numbers(seed, queries[:, None], rows), np.uint64(2**64 - 1))
        count = min(rule.per_query, random.shape[1])
        last = np.sort(random, axis=1)[:, count - 1 : count]
        taken = pool & (random <= last)
    columns = np.argsort(~taken, axis=1, kind="stable")[:, : rule.per_query]
    exists = np.take_along_axis(taken, columns, 1)
    mined = np.where(exists, np.take_along_axis(rows, columns, 1), -1)
    mined_scores = np.where(exists, np.take_along_axis(scores, columns, 1), np.float32(np.nan))
    missing = ((0, 0), (0, rule.per_query - columns.shape[1]))
    return (
        np.pad(mined, missing, constant_values=-1),
        np.pad(mined_scores.astype(np.float32), missing, constant_values=np.nan),
    )


def _random_numbers(seed: int, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
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
