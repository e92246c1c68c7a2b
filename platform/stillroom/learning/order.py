"""Which rows of the training data a step takes: a function of (seed, step) alone.

Resuming therefore needs one integer, and works with any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from stillroom.learning.permutation import Permutation
from stillroom.learning.sharded_permutation import ShardedPermutation
from stillroom.learning.source_draws import SourceDraws
from stillroom.learning.source_runs import RowRanges, SourceRuns

LENGTH_WINDOW = 32  # batches within which rows are sorted by length


class RowNumbers(Protocol):
    """Numbers by row: an array, or several that are read as one."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class WorkerShard:
    """The part of a global batch that a worker takes: rows rank, rank + world, rank + 2 world, …"""

    rank: int = 0
    world: int = 1


SINGLE_WORKER = WorkerShard()


@dataclass(frozen=True)
class BatchOrder:
    """Which rows a step takes.

    Every source is read in epochs, each a random permutation of its rows. The union over the
    workers does not depend on their number, so a run may resume on another number of workers.
    Neither time nor memory of a step grows with the number of rows.

    Args:
        source: of each row.
        weights: share of the batches that each source gets, (sources,); None: by size.
        one_source: a batch's rows are all of one source.
        lengths: of each row's text; batches then hold rows of similar length. None: any.
        temperature: without weights, shares are proportional to sizes ** (1 / temperature): above
            1, small sources are read more often (arXiv 1907.05019).
        shuffle_block_size: rows of a source that are in memory together: see `ShardedPermutation`.
            None: any row of the source may follow any other.
    """

    source: SourceRuns
    seed: int
    global_batch: int
    weights: Sequence[float] | None = None
    one_source: bool = True
    lengths: RowNumbers | None = None
    temperature: float = 1.0
    shuffle_block_size: int | None = None
    # By source: what its last steps were read from, which mostly serves the next step too.
    _permutations: dict[int, tuple[int, Permutation | ShardedPermutation]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _windows: dict[int, tuple[int, int, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def source_rows(self) -> list[RowRanges]:
        """Rows of each source."""
        sources = max(len(self.weights or ()), int(self.source.numbers.max()) + 1)
        return [self.source.rows_of(s) for s in range(sources)]

    @cached_property
    def shares(self) -> np.ndarray:
        """The probability of each source; they sum to 1."""
        sizes = np.array([len(rows) for rows in self.source_rows])
        by_size = np.where(sizes, sizes ** (1 / self.temperature), 0)
        weights = by_size if self.weights is None else np.where(sizes, self.weights, 0)
        return weights / weights.sum()

    def rows_at(self, step: int, shard: WorkerShard = SINGLE_WORKER) -> np.ndarray:
        """The rows that a worker takes: int64, (global_batch / world,)."""
        batch = self._single_source_batch(step) if self.one_source else self._mixed_batch(step)
        return batch[shard.rank :: shard.world]

    @cached_property
    def _draws(self) -> SourceDraws:
        return SourceDraws(self.shares, self.seed)

    def _single_source_batch(self, step: int) -> np.ndarray:
        drawn, before = self._draws.between(step, step + 1)
        source = int(drawn[0])
        nth = int(before[source])  # number of earlier batches of that source
        size = len(self.source_rows[source])
        if size < self.global_batch:  # a batch is more than an epoch
            return self._stream(source, nth * self.global_batch, (nth + 1) * self.global_batch)
        # Epochs are cut to whole batches, so that no batch holds a row twice.
        epoch, start = divmod(nth * self.global_batch, size - size % self.global_batch)
        return self._epoch(source, epoch, start, start + self.global_batch)

    def _mixed_batch(self, step: int) -> np.ndarray:
        now, before = self._draws.between(step * self.global_batch, (step + 1) * self.global_batch)
        rows = np.empty(self.global_batch, dtype=np.int64)
        for source in np.unique(now).tolist():
            start, taken = int(before[source]), now == source
            rows[taken] = self._stream(source, start, start + int(taken.sum()))
        return rows

    def _stream(self, source: int, start: int, stop: int) -> np.ndarray:
        """Positions start … stop - 1 of the source's epochs, one after the other."""
        size = len(self.source_rows[source])
        return np.concatenate(
            [
                self._epoch(
                    source, epoch, max(start - epoch * size, 0), min(stop - epoch * size, size)
                )
                for epoch in range(start // size, (stop - 1) // size + 1)
            ]
        )

    def _epoch(self, source: int, epoch: int, start: int, stop: int) -> np.ndarray:
        """Positions start … stop - 1 of an epoch of a source."""
        if self.lengths is None:
            return self._permuted(source, epoch, start, stop)
        size = LENGTH_WINDOW * self.global_batch
        first, last = start // size, (stop - 1) // size
        windows = [self._window(source, epoch, number) for number in range(first, last + 1)]
        return np.concatenate(windows)[start - first * size : stop - first * size]

    def _permuted(self, source: int, epoch: int, start: int, stop: int) -> np.ndarray:
        rows = self.source_rows[source]
        cached = self._permutations.get(source)
        if cached is None or cached[0] != epoch:
            key, block = (self.seed, 1, source, epoch), self.shuffle_block_size
            cached = self._permutations[source] = (
                epoch,
                Permutation(len(rows), key)
                if block is None
                else ShardedPermutation(len(rows), key, block),
            )
        return rows[cached[1][np.arange(start, stop)]]

    def _window(self, source: int, epoch: int, number: int) -> np.ndarray:
        """The rows of a window of batches: each batch has similar lengths, and their order is
        random. Rows at the end of an epoch that fill no batch stay last."""
        assert self.lengths is not None
        cached = self._windows.get(source)
        if cached is None or cached[:2] != (epoch, number):
            start = number * LENGTH_WINDOW * self.global_batch
            stop = min(start + LENGTH_WINDOW * self.global_batch, len(self.source_rows[source]))
            rows = self._permuted(source, epoch, start, stop)
            batches = len(rows) // self.global_batch
            whole, rest = np.split(rows, [batches * self.global_batch])
            by_length = whole[np.argsort(self.lengths[whole], kind="stable")]
            rng = np.random.default_rng([self.seed, 4, source, epoch, number])
            shuffled = by_length.reshape(batches, self.global_batch)[rng.permutation(batches)]
            cached = (epoch, number, np.concatenate([shuffled.reshape(-1), rest]))
            self._windows[source] = cached
        return cached[2]
