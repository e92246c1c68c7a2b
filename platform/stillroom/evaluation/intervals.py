"""Whether the difference of two models' scores is more than chance."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
BLOCK = 1 << 22  # indices drawn at a time
TAILS = (2.5, 97.5)  # percentiles: a 95 % interval


@dataclass(frozen=True)
class Difference:
    """The mean score of one model less another's, over sets, with its 95 % interval.

    Attributes:
        first, second: the two models' means over the sets.
        low, high: of `difference`, by bootstrap over queries.
        queries: of all sets.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    queries: int

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def paired_difference(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], *, seed: int = 0
) -> Difference:
    """The difference of two models on the same queries.

    Paired bootstrap (Efron and Tibshirani, 1993; for retrieval: Sakai, 2006): the queries of each
    set are drawn anew with replacement, both models keep their scores of each, and every set counts
    the same.

    Args:
        first, second: set → score of each query, (queries,).
    """
    rng = np.random.default_rng(seed)
    drawn = np.zeros(RESAMPLES)
    for name, scores in first.items():
        drawn += _resampled_means(np.asarray(scores) - np.asarray(second[name]), rng)
    low, high = np.percentile(drawn / len(first), TAILS)
    mean, other = (
        float(np.mean([np.mean(of_set) for of_set in scores.values()]))
        for scores in (first, second)
    )
    queries = sum(map(len, first.values()))
    return Difference(mean, other, mean - other, float(low), float(high), queries)


def _resampled_means(differences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of each resample, (RESAMPLES,)."""
    count = len(differences)
    rows = max(1, BLOCK // count)
    means = [
        differences[rng.integers(count, size=(min(rows, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)
