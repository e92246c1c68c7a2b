"""Progress of a task reaches the driver: its log, and its metrics."""

import logging

import pytest
import ray

from stillroom.cluster import progress as module
from stillroom.cluster.progress import Progress, run_with_progress
from stillroom.errors import UserError

OPTIONS = {"num_cpus": 1}


pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_rows_that_a_task_reports_reach_the_driver_with_its_result():
    def count(first, on_rows):
        for rows in (first, 3, 4):
            on_rows(rows)
        return {"options": ray.get_runtime_context().get_assigned_resources()["CPU"]}

    progress = Progress(20)
    assert run_with_progress(count, 2, options=OPTIONS, progress=progress) == {"options": 1.0}
    assert progress.done == 9


def test_an_error_of_the_task_is_raised_after_the_rows_before_it():
    def fail(on_rows):
        on_rows(5)
        raise UserError("a text", "cannot be encoded", "Remove it")

    progress = Progress(20)
    with pytest.raises(UserError, match="a text: cannot be encoded"):
        run_with_progress(fail, options=OPTIONS, progress=progress)
    assert progress.done == 5


def test_a_line_is_logged_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger=module.__name__)
    progress = Progress(4000, label="report")
    progress.add(1000)
    assert caplog.messages == []
    monkeypatch.setattr(module, "LOG_INTERVAL_S", 0.0)
    progress.add(500)
    assert caplog.messages == ["report: 1,500 of 4,000 texts"]
    quiet = Progress(4000)
    quiet.add(4000)
    assert len(caplog.messages) == 1
