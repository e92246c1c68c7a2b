"""The result of mining, and its summary for the report."""

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 40  # of a histogram


@dataclass(frozen=True)
class MinedNegatives:
    """The negatives of every query.

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

    def summary(self) -> dict[str, Any]:
        """Counts and histograms, as JSON."""
        scored = self.scores[~np.isnan(self.scores)]
        return {
            "kept": int((self.negatives >= 0).sum()),
            "queries_without": int((self.negatives < 0).all(1).sum()),
            "rejected": self.rejected,
            "recall": self.recall,
            "scores": histograms({"positives": self.positive_scores, "negatives": scored}),
        }


def histograms(series: dict[str, np.ndarray]) -> dict[str, Any]:
    """Histograms with shared `edges` of equal width: name → counts. Values that are not finite are
    left out."""
    finite = {name: values[np.isfinite(values)] for name, values in series.items()}
    pooled = np.concatenate(list(finite.values()))
    low, high = (float(pooled.min()), float(pooled.max())) if len(pooled) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in finite.items()}
    return {"edges": edges.tolist(), **counts}
