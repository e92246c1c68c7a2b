"""Which rows of the training data a step takes: a function of (seed, step) alone.

Resuming therefore needs one integer, and works with any number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

LENGTH_WINDOW = 32  # batches within which rows are sorted by length


@dataclass(frozen=True)
class WorkerShard:
    """The part of a global batch that a worker takes: rows rank, rank + world, rank + 2 world, …"""

    rank: int = 0
    world: int = 1


SINGLE_WORKER = WorkerShard()


@dataclass(frozen=True)
class BatchOrder:
    """Which rows a step takes.

    Every source is read in epochs, each a fresh permutation of its rows. The union over the
    workers does not depend on their number, so a run may resume on another number of workers.

    Args:
        source: of each row, int, (n,).
        weights: share of the batches that each source gets, (sources,); None: by size.
        one_source: a batch's rows are all of one source.
        lengths: of each row's text; batches then hold rows of similar length. None: any.
        temperature: without weights, shares are proportional to sizes ** (1 / temperature): above
            1, small sources are read more often (arXiv 1907.05019).
    """

    source: np.ndarray
    seed: int
    global_batch: int
    weights: Sequence[float] | None = None
    one_source: bool = True
    lengths: np.ndarray | None = None
    temperature: float = 1.0
    _choice_cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    # The epoch that each source was last read in: a permutation serves all of its steps.
    _epoch_cache: dict[int, tuple[int, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def source_rows(self) -> list[np.ndarray]:
        """Rows of each source."""
        sources = max(len(self.weights or ()), int(self.source.max()) + 1)
        return [np.flatnonzero(self.source == s) for s in range(sources)]

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

    def _single_source_batch(self, step: int) -> np.ndarray:
        chosen = self._choices(step + 1)
        source = int(chosen[step])
        nth = int((chosen[:step] == source).sum())  # number of earlier batches of that source
        size = len(self.source_rows[source])
        if size < self.global_batch:  # a batch is more than an epoch
            return self._stream(source, nth * self.global_batch, (nth + 1) * self.global_batch)
        # Epochs are cut to whole batches, so that no batch holds a row twice.
        epoch, start = divmod(nth * self.global_batch, size - size % self.global_batch)
        return self._epoch(source, epoch)[start : start + self.global_batch]

    def _mixed_batch(self, step: int) -> np.ndarray:
        chosen = self._choices((step + 1) * self.global_batch)
        before, now = np.split(chosen, [step * self.global_batch])
        rows = np.empty(self.global_batch, dtype=np.int64)
        for source in np.unique(now):
            start, taken = int((before == source).sum()), now == source
            rows[taken] = self._stream(source, start, start + int(taken.sum()))
        return rows

    def _choices(self, count: int) -> np.ndarray:
        """The source of each of the first `count` draws; longer lists begin with shorter ones."""
        if len(self.shares) == 1:
            return np.zeros(count, dtype=np.int64)
        choices = self._choice_cache.get(0)
        if choices is None or len(choices) < count:
            uniform = np.random.default_rng([self.seed, 0]).random(2 * count)
            choices = np.searchsorted(np.cumsum(self.shares)[:-1], uniform, side="right")
            self._choice_cache[0] = choices
        return choices[:count]

    def _epoch(self, source: int, epoch: int) -> np.ndarray:
        cached = self._epoch_cache.get(source)
        if cached is None or cached[0] != epoch:
            cached = self._epoch_cache[source] = (epoch, self._permutation(source, epoch))
        return cached[1]

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, source, epoch])
        order = rng.permutation(self.source_rows[source])
        if self.lengths is None:
            return order
        window = LENGTH_WINDOW * self.global_batch
        batches: list[np.ndarray] = []
        whole = len(order) - len(order) % self.global_batch
        for start in range(0, whole, window):
            part = order[start : min(start + window, whole)]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += np.split(part, len(part) // self.global_batch)
        rest = order[whole:]
        return np.concatenate([*(batches[i] for i in rng.permutation(len(batches))), rest])

    def _stream(self, source: int, start: int, stop: int) -> np.ndarray:
        """Positions start … stop - 1 of the source's epochs, one after the other."""
        size = len(self.source_rows[source])
        first, last = start // size, (stop - 1) // size
        epochs = [self._epoch(source, epoch) for epoch in range(first, last + 1)]
        return np.concatenate(epochs)[start - first * size : stop - first * size]
