"""A random order of n rows as a function of the position, with memory that does not grow with n."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stillroom.data.cleaning.splitmix import splitmix64

SHUFFLED_ROWS = 1 << 16  # up to as many are shuffled in memory
ROUNDS = 8  # of the Feistel network; 4 hide its structure (Luby and Rackoff, 1988)
HALF = np.uint64(32)


@dataclass(frozen=True)
class Permutation:
    """A random permutation of 0 … n - 1: `permutation[positions]` are the rows there.

    Few rows are shuffled, so that every order is equally likely. For many, a generalised Feistel
    network (Black and Rogaway, CT-RSA 2002): a row is a cell of a grid of a × b ≥ n cells, and each
    round shifts its column by a hash of its line, or its line by a hash of its column. Cells from n
    on, fewer than a, are followed until one below n is reached.

    Args:
        key: numbers that select the permutation, such as (seed, source, epoch).
    """

    n: int
    key: Sequence[int]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions, int64."""
        if self.n <= SHUFFLED_ROWS:
            return self._shuffled[positions]
        cells = self._mapped(positions.astype(np.uint64))
        while (outside := np.flatnonzero(cells >= np.uint64(self.n))).size:
            cells[outside] = self._mapped(cells[outside])
        return cells.astype(np.int64)

    @cached_property
    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng(list(self.key)).permutation(self.n)

    @cached_property
    def _round_keys(self) -> np.ndarray:
        return np.random.SeedSequence(list(self.key)).generate_state(ROUNDS, np.uint64)

    def _mapped(self, cells: np.ndarray) -> np.ndarray:
        """The cell that the network maps each cell to, uint64."""
        columns = math.isqrt(self.n - 1) + 1
        a, b = np.uint64(columns), np.uint64(-(-self.n // columns))
        line, column = np.divmod(cells, a)
        for number, key in enumerate(self._round_keys):
            if number % 2:
                line = (line + _below(b, column ^ key)) % b
            else:
                column = (column + _below(a, line ^ key)) % a
        return line * a + column


def _below(limit: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Hashes of numbers, from 0 to limit - 1; limit is below 2³²."""
    return ((splitmix64(numbers) >> HALF) * limit) >> HALF
