"""A random order of n rows in which neighbours come from few shards of neighbouring rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from stillroom.learning.permutation import Permutation

# As in stages/vectors: vectors of so many neighbouring rows are neighbours in the files.
SHARD_ROWS = 1 << 16


@dataclass(frozen=True)
class ShardedPermutation:
    """A random permutation of 0 … n - 1 that reads rows a few shards at a time.

    Shards of SHARD_ROWS rows are permuted, and the rows within each block of positions, as by
    `py1b` of MosaicML Streaming. A block holds the rows of `block / SHARD_ROWS` shards, and of one
    or two that it shares with its neighbours: nothing else needs to be in memory.

    Args:
        key: numbers that select the permutation, such as (seed, source, epoch).
        block: positions whose rows are permuted together.
    """

    n: int
    key: Sequence[int]
    block: int

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions, int64."""
        return self._rows(self._shuffled_in_blocks(positions))

    def _shuffled_in_blocks(self, positions: np.ndarray) -> np.ndarray:
        """Positions in the order of the shards, int64."""
        shuffled = np.empty(len(positions), dtype=np.int64)
        blocks = positions // self.block
        for block in np.unique(blocks).tolist():
            here, first = blocks == block, block * self.block
            size = min(self.block, self.n - first)
            permutation = _block_permutation(size, (*self.key, 1, block))
            shuffled[here] = first + permutation[positions[here] - first]
        return shuffled

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions of the shards, one after the other, int64.

        The last shard may be shorter than the others. All places among them are equally likely, and
        it stands behind `_before_last` of them.
        """
        whole, rest = divmod(self.n, SHARD_ROWS)
        start_of_last = self._before_last * SHARD_ROWS
        behind = positions - np.where(positions < start_of_last, 0, rest)
        in_last = (positions >= start_of_last) & (behind < start_of_last)
        rows = whole * SHARD_ROWS + positions - start_of_last
        shards, offsets = np.divmod(behind[~in_last], SHARD_ROWS)
        rows[~in_last] = self._shards[shards] * SHARD_ROWS + offsets
        return rows

    @cached_property
    def _shards(self) -> Permutation:
        return Permutation(self.n // SHARD_ROWS, (*self.key, 0))

    @cached_property
    def _before_last(self) -> int:
        return int(np.random.default_rng([*self.key, 2]).integers(self.n // SHARD_ROWS + 1))


@lru_cache(maxsize=8)
def _block_permutation(size: int, key: tuple[int, ...]) -> Permutation:
    # Kept: up to SHUFFLED_ROWS a permutation is a list, and steps in order read one block.
    return Permutation(size, key)
