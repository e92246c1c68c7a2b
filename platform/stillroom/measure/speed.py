"""Texts a second, on the machine at hand."""

import statistics
import time
from collections.abc import Callable
from typing import Any

RUNS = 3


def texts_per_second(encode: Callable[[list[str]], Any], texts: list[str]) -> float | None:
    """The median of a few runs over `texts`, after a warm-up; None without texts."""
    if not texts:
        return None
    encode(texts[:8])
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        encode(texts)
        seconds.append(time.perf_counter() - began)
    return len(texts) / statistics.median(seconds)
