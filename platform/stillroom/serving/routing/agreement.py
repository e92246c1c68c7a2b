"""How well a student's vectors agree with its teacher's, text by text: NumPy, no Ray.

In one space, agreement is the cosine of both vectors. In any spaces, it is a rank correlation: each
model orders the same recent texts by its scores with this text, as its index would: by the inner
products of its vectors, which are cosines where the vectors are of unit length.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

MAX_PROBES = 64  # recent texts that orders are compared on …
MIN_PROBES = 8  # … and how many are enough for an order


@dataclass(frozen=True)
class Agreement:
    """Agreement on one text; None where it cannot be measured.

    Attributes:
        cosine: of both vectors; None for different spaces.
        rank_correlation: Spearman's correlation of the two orders of the recent texts, in [-1, 1].
    """

    cosine: float | None
    rank_correlation: float | None

    @property
    def score(self) -> float | None:
        """The cosine where there is one, else the rank correlation."""
        return self.rank_correlation if self.cosine is None else self.cosine


class AgreementTracker:
    """Compares one student's vectors with its teacher's, and remembers recent texts' vectors.

    Args:
        same_space: both encode into one space, with vectors of one size.
    """

    def __init__(self, *, same_space: bool):
        self.same_space = same_space
        self.probes: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=MAX_PROBES)

    def compare(self, student_d: np.ndarray, teacher_e: np.ndarray) -> Agreement:
        """Agreement on one text, of d student and e teacher dims; d = e in the same space."""
        student, teacher = student_d.astype(np.float32), teacher_e.astype(np.float32)
        rank_correlation = None
        if len(self.probes) >= MIN_PROBES:
            students, teachers = map(np.stack, zip(*self.probes, strict=True))
            rank_correlation = spearman(students @ student, teachers @ teacher)
        self.probes.append((student, teacher))
        cosine = float(unit_vector(student) @ unit_vector(teacher)) if self.same_space else None
        return Agreement(cosine, rank_correlation)


def unit_vector(vector: np.ndarray) -> np.ndarray:
    """The vector of length 1 in the same direction."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def spearman(first_n: np.ndarray, second_n: np.ndarray) -> float:
    """Spearman's rank correlation of n ≥ 2 numbers; equal numbers keep the order they come in."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (first_n, second_n)]
    n = len(first_n)
    return 1 - 6 * float(np.sum((ranks[0] - ranks[1]) ** 2)) / (n * (n**2 - 1))
