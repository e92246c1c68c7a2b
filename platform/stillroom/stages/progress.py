"""How far the stage at work is, as Ray's metrics: a cluster's Prometheus reads them."""

import functools

from ray.util.metrics import Counter, Gauge

from stillroom.logs import told

TAGS = ("stage", "ref")  # vectors · vectors/quickstart-1a2b3c4d


class Progress:
    """`ray_stillroom_stage_done`, from 0 to 1, and `ray_stillroom_stage_rows_total` of the run's
    stage that this process works at; outside of one, nothing is said.

    Args:
        total: rows to go through: texts, queries or pairs, whatever the stage has.
    """

    def __init__(self, total: int):
        self.total, self.passed = max(1, total), 0
        ref = told().get("stage")
        self.tags = None if ref is None else {"stage": ref.partition("/")[0], "ref": ref}
        self.add(0)

    def add(self, rows: int, *, fresh: bool = True) -> None:
        """So many more are done; not `fresh` where they were before this process began."""
        self.passed += rows
        if self.tags is not None:
            _done().set(min(1.0, self.passed / self.total), self.tags)
            if rows and fresh:
                _rows().inc(rows, self.tags)


@functools.cache
def _done() -> Gauge:
    return Gauge("stillroom_stage_done", "How much of a stage is done, 0 to 1", TAGS)


@functools.cache
def _rows() -> Counter:
    return Counter("stillroom_stage_rows", "Texts, queries or pairs gone through", TAGS)
