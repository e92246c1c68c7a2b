"""TODO docstring: mining/mined.py."""

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 40  # of a histogram


@dataclass(frozen=True)
class Mined:
    """Negatives of every query, int64 (q, per_query), -1 for none; their scores, float32, nan
    for none; the positives' scores (q,); reason → candidates that it dropped; and what of exact
    search the miners that only approximate it find."""

    negatives: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    rejected: dict[str, int]
    recall: dict[str, float]

    def summary(self) -> dict[str, Any]:
        scored = self.scores[~np.isnan(self.scores)]
        return {
            "kept": int((self.negatives >= 0).sum()),
            "queries_without": int((self.negatives < 0).all(1).sum()),
            "rejected": self.rejected,
            "recall": self.recall,
            "scores": histograms({"positives": self.positive_scores, "negatives": scored}),
        }


def histograms(of: dict[str, np.ndarray]) -> dict[str, Any]:
    """name → counts, in bins of equal width whose edges they share."""
    finite = {name: values[np.isfinite(values)] for name, values in of.items()}
    every = np.concatenate(list(finite.values()))
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in finite.items()}
    return {"edges": edges.tolist(), **counts}
