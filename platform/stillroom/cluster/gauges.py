"""How far the stage at work is, as Ray's metrics: a cluster's Prometheus reads them."""

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray.util.metrics import Counter, Gauge

REPEAT_S = 5.0  # Ray drops a gauge that was not set for twice its interval of reports, 20 s


class Gauges:
    """Ray's gauges `{prefix}_{name}`, repeated while the process lives and this is not closed: a
    step may last longer than Ray's patience, and what hangs is to be seen, too."""

    def __init__(self, prefix: str, tags: Mapping[str, str]):
        self.prefix, self.tags = prefix, dict(tags)
        self.values: dict[str, float] = {}
        self.over = threading.Event()
        threading.Thread(target=self._repeat, name=prefix, daemon=True).start()

    def set(self, name: str, value: float) -> None:
        self.values[name] = value
        _gauge(f"{self.prefix}_{name}", tuple(self.tags)).set(value, self.tags)

    def close(self) -> None:
        self.over.set()

    def _repeat(self) -> None:
        while not self.over.wait(REPEAT_S):
            for name, value in list(self.values.items()):
                self.set(name, value)


class Progress:
    """`ray_stillroom_stage_done`, from 0 to 1, and `ray_stillroom_stage_rows_total` of the stage
    that this process shows; where it shows none, nothing is said.

    Args:
        total: rows to go through: texts, queries or pairs, whatever the stage has.
    """

    shown: Gauges | None = None

    def __init__(self, total: int):
        self.total, self.passed = max(1, total), 0

    def add(self, rows: int, *, fresh: bool = True) -> None:
        """So many more are done; not `fresh` where they were before this process began."""
        self.passed += rows
        if Progress.shown is not None:
            Progress.shown.set("done", min(1.0, self.passed / self.total))
            if rows and fresh:
                _rows().inc(rows, Progress.shown.tags)


@contextmanager
def showing(ref: str) -> Iterator[None]:
    """Around a run's stage at work."""
    tags = {"stage": ref.partition("/")[0], "ref": ref}  # vectors · vectors/quickstart-1a2b3c4d
    Progress.shown = gauges = Gauges("stillroom_stage", tags)
    gauges.set("done", 0)
    try:
        yield
        gauges.set("done", 1)
    finally:
        gauges.close()
        Progress.shown = None


@functools.cache
def _gauge(name: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(name, tag_keys=tags)


@functools.cache
def _rows() -> Counter:
    return Counter("stillroom_stage_rows", "Texts, queries or pairs gone through", ("stage", "ref"))
