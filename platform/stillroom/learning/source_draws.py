"""Which source each draw takes: random, by the sources' shares."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

BLOCK = 1 << 16  # draws that are made at a time


@dataclass
class SourceDraws:
    """Draws of sources as a function of their number; memory holds a block of them.

    Args:
        shares: the probability of each source, (sources,).
    """

    shares: np.ndarray
    seed: int
    # The last block that was made, as (number, sources); and how often each source was drawn before
    # a block, as (number, counts), so that steps in order count no draw twice.
    _block: tuple[int, np.ndarray] | None = field(default=None, repr=False, compare=False)
    _before: tuple[int, np.ndarray] | None = field(default=None, repr=False, compare=False)

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources of the draws start … stop - 1; and how often each source was drawn before."""
        if len(self.shares) == 1:
            return np.zeros(stop - start, dtype=np.int64), np.array([start])
        first, last = start // BLOCK, (stop - 1) // BLOCK
        before = self._counts_before(first)
        drawn = np.concatenate([self._drawn(number) for number in range(first, last + 1)])
        skipped, kept = np.split(drawn[: stop - first * BLOCK], [start - first * BLOCK])
        return kept, before + np.bincount(skipped, minlength=len(self.shares))

    def _counts_before(self, block: int) -> np.ndarray:
        number, counts = self._before or (0, np.zeros(len(self.shares), dtype=np.int64))
        if number > block:
            number, counts = 0, np.zeros(len(self.shares), dtype=np.int64)
        for passed in range(number, block):
            uniform = self._uniform(passed)
            below = [np.count_nonzero(uniform < limit) for limit in self._limits]
            counts = counts + np.diff([0, *below, BLOCK])
        self._before = (block, counts)
        return counts

    def _drawn(self, number: int) -> np.ndarray:
        """The sources of a block's draws."""
        if self._block is None or self._block[0] != number:
            drawn = np.searchsorted(self._limits, self._uniform(number), side="right")
            self._block = (number, drawn)
        return self._block[1]

    @cached_property
    def _limits(self) -> np.ndarray:
        return np.cumsum(self.shares)[:-1]

    def _uniform(self, number: int) -> np.ndarray:
        """A block's random numbers."""
        bits = np.random.PCG64([self.seed, 0]).advance(number * BLOCK)
        return np.random.Generator(bits).random(BLOCK)
