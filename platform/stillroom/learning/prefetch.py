"""TODO docstring: learning/prefetch.py."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Ahead:
    """Batches made by a thread while the step before them is computed; the same, in any order.

    Fast tokenizers let go of Python's lock, so that one core does it beside the others.
    """

    def __init__(self, batches: Any, steps: int, depth: int = 2):
        self.batches, self.steps, self.depth = batches, steps, depth
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.waiting: dict[int, Any] = {}

    def ids(self, step: int) -> np.ndarray:
        return self.batches.ids(step)

    def __call__(self, step: int) -> Any:
        for ahead in range(step, min(step + self.depth + 1, self.steps)):
            if ahead not in self.waiting:
                self.waiting[ahead] = self.pool.submit(self.batches, ahead)
        return self.waiting.pop(step).result()
