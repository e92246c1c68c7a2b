"""Which of the passages found are hard negatives, and why the others are not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Rule:
    """TopK-PercPos, positive-aware mining (NV-Retriever, arXiv 2407.15831).

    Attributes:
        max_share_of_positive: a candidate that scores above this share of the positive's own
            score is taken for an unjudged answer.
        skip_first: how many of the best that remain are passed over.
        sample_from: how many after those are drawn from.
    """

    max_share_of_positive: float
    skip_first: int
    sample_from: int
    per_query: int
    strategy: Literal["random", "top"]


@dataclass(frozen=True)
class Selected:
    """Negatives as passage rows, int64 (q, per_query), -1 for none; their scores, -inf for
    none and nan for those that were given; and reason → how many candidates it dropped."""

    negatives: np.ndarray
    scores: np.ndarray
    counts: dict[str, int]


def select(
    scores: np.ndarray,
    rows: np.ndarray,
    *,
    positive_score_q: np.ndarray,
    positives: np.ndarray,
    given: Sequence[Sequence[int]],
    rule: Rule,
    seed: int,
) -> Selected:
    """Negatives of each query: those given with it, then those mined.

    Args:
        scores, rows: candidates of each query, (q, k), best first, row -1 where there is none.
        positive_score_q: the positives' own scores. Of a positive that scores 0 or less no share
            can be taken; then every candidate above it counts as too close.
        positives: passage row of each query's positive.
        given: passage rows that came with each query, negatives whatever they score.
    """
    kept_rows = np.full((len(rows), rule.per_query), -1, dtype=np.int64)
    kept_scores = np.full((len(rows), rule.per_query), -np.inf, dtype=np.float32)
    counts = Counter(
        {"the positive": 0, "too close to the positive": 0, "given already": 0, "skipped": 0}
    )
    for q, own in enumerate(positives):
        first = [row for row in dict.fromkeys(given[q]) if row != own][: rule.per_query]
        positive = positive_score_q[q]
        limit = positive * rule.max_share_of_positive if positive > 0 else positive
        pool: list[int] = []  # places among the query's candidates
        for place, row in enumerate(rows[q]):
            if row < 0:
                break
            if row == own:
                counts["the positive"] += 1
            elif row in first:
                counts["given already"] += 1
            elif scores[q, place] > limit:
                counts["too close to the positive"] += 1
            else:
                pool.append(place)
        counts["skipped"] += min(len(pool), rule.skip_first)
        pool = pool[rule.skip_first :][: rule.sample_from]
        wanted = min(rule.per_query - len(first), len(pool))
        if rule.strategy == "random":
            # Seeded by the query, so that adding another changes nothing for this one.
            drawn = np.random.default_rng([seed, q]).choice(len(pool), wanted, replace=False)
            pool = [pool[i] for i in sorted(drawn)]
        mined = pool[:wanted]
        kept_rows[q, : len(first) + len(mined)] = [*first, *rows[q, mined]]
        kept_scores[q, : len(first)] = np.nan
        kept_scores[q, len(first) : len(first) + len(mined)] = scores[q, mined]
    return Selected(kept_rows, kept_scores, dict(counts))
