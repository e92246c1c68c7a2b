"""The result of mining, and its summary for the report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 40  # of a histogram
CHUNK = 1 << 18  # queries that are read at a time


@dataclass(frozen=True)
class MinedNegatives:
    """The negatives of every query. The arrays may be mapped files.

    Attributes:
        negatives: passage rows, int64 (q, per_query), -1 for none.
        scores: of the negatives, float32 (q, per_query), nan for none.
        positive_scores: (q,).
        rejected: reason → number of candidates that it rejected.
        recall: approximate miner → share of exact search's results that it finds.
    """

    negatives: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    rejected: dict[str, int]
    recall: dict[str, float]

    @property
    def kept(self) -> int:
        """The number of negatives."""
        return sum(int((rows >= 0).sum()) for rows in _chunks(self.negatives))

    def summary(self) -> dict[str, Any]:
        """Counts and histograms, as JSON."""
        without = (int((rows < 0).all(1).sum()) for rows in _chunks(self.negatives))
        return {
            "kept": self.kept,
            "queries_without": sum(without),
            "rejected": self.rejected,
            "recall": self.recall,
            "scores": histograms({"positives": self.positive_scores, "negatives": self.scores}),
        }


def histograms(series: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Histograms with shared `edges` of equal width: name → counts. Values that are not finite are
    left out."""
    lows, highs = [], []
    for values in series.values():
        for part in _finite_chunks(values):
            lows.append(float(part.min()))
            highs.append(float(part.max()))
    low, high = min(lows, default=0.0), max(highs, default=1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = {
        name: sum((np.histogram(part, edges)[0] for part in _finite_chunks(values)), np.zeros(BINS))
        for name, values in series.items()
    }
    return {
        "edges": edges.tolist(),
        **{name: of_name.astype(int).tolist() for name, of_name in counts.items()},
    }


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def _finite_chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    for part in _chunks(values):
        finite = part[np.isfinite(part)]
        if len(finite):
            yield finite
