"""Progress of the running stage: Ray metrics, log lines, and rows that remote tasks report."""

import functools
import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.metrics import Counter

from stillroom.cluster.gauges import Gauges

LOG_INTERVAL_S = 10.0
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Progress:
    """Progress of the stage inside `show_progress`; outside of it no metric is set.

    Metrics: `ray_stillroom_stage_progress`, from 0 to 1, and `ray_stillroom_stage_rows_total`.

    Args:
        total: rows to process: texts, queries or pairs, depending on the stage.
        label: where given, a line `LABEL: DONE of TOTAL texts` is logged every `LOG_INTERVAL_S`.
    """

    gauges: Gauges | None = None  # of the stage that this process shows

    def __init__(self, total: int, label: str | None = None):
        self.total, self.label = total, label
        self.done = 0
        self.logged_at = time.monotonic()

    def add(self, rows: int, *, counted: bool = True) -> None:
        """Reports `rows` more finished rows.

        Args:
            counted: as rows of this run; False for those of an earlier process.
        """
        self.done += rows
        if Progress.gauges is not None:
            Progress.gauges.set("progress", min(1.0, self.done / max(1, self.total)))
            if rows and counted:
                _rows_counter().inc(rows, Progress.gauges.tags)
        if self.label is not None and time.monotonic() - self.logged_at >= LOG_INTERVAL_S:
            self.logged_at = time.monotonic()
            log.info("%s: %s of %s texts", self.label, f"{self.done:,}", f"{self.total:,}")


@contextmanager
def show_progress(ref: str) -> Iterator[None]:
    """Shows the progress of a stage in this process while it runs.

    Args:
        ref: of the stage's artifact, such as vectors/quickstart-1a2b3c4d.
    """
    tags = {"stage": ref.partition("/")[0], "ref": ref}
    Progress.gauges = gauges = Gauges("stillroom_stage", tags)
    gauges.set("progress", 0)
    try:
        yield
        gauges.set("progress", 1)
    finally:
        gauges.close()
        Progress.gauges = None


def run_with_progress(
    function: Callable[..., Result],
    *args: Any,
    options: Mapping[str, Any],
    progress: Progress,
) -> Result:
    """The result of `function(*args, on_rows)` as a Ray task.

    The task calls `on_rows(n)` after every n rows, and `progress` of this process gets them.

    Args:
        options: of the Ray task.
    """
    task = ray.remote(num_returns="streaming", **options)(_stream)
    for ref in task.remote(function, args):
        item = ray.get(ref)
        if isinstance(item, _Finished):
            result: Result = item.result
            return result
        progress.add(item)
    raise AssertionError("the task ends with its result")


class _Finished:
    """The last item of a task's stream."""

    def __init__(self, result: Any):
        self.result = result


def _stream(function: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[int | _Finished]:
    """Rows as the function reports them, then its result. The function runs in a thread: it calls
    back, and a generator can only be read."""
    rows: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, *args, rows.put)
        future.add_done_callback(lambda _: rows.put(None))
        while (count := rows.get()) is not None:
            yield count
        yield _Finished(future.result())


@functools.cache
def _rows_counter() -> Counter:
    return Counter("stillroom_stage_rows", "Texts, queries or pairs processed", ("stage", "ref"))
