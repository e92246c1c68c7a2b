"""Prepares batches in the background, while earlier steps are computed."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from stillroom.learning.batch_types import Batches


class Prefetcher:
    """The given batches, made by a thread up to `depth` steps ahead.

    Steps may be requested in any order. Fast tokenizers release Python's lock, so the thread runs
    on another core in parallel.

    Args:
        steps: number of steps; no batch after the last one is made.
    """

    def __init__(self, batches: Batches, steps: int, depth: int = 2):
        self.batches, self.steps, self.depth = batches, steps, depth
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.pending: dict[int, Future[Any]] = {}

    def ids(self, step: int) -> np.ndarray:
        return self.batches.ids(step)

    def __call__(self, step: int) -> Any:
        for ahead in range(step, min(step + self.depth + 1, self.steps)):
            if ahead not in self.pending:
                self.pending[ahead] = self.pool.submit(self.batches, ahead)
        return self.pending.pop(step).result()
