"""Logs leave out certain messages of libraries, and nothing else."""

import logging

import pytest

from stillroom.cluster import session
from stillroom.cluster.library_messages import ignore_library_messages
from stillroom.cluster.ray_private import ray_data_loggers
from stillroom.observability.run_journal import WORKER_LOGGER

IGNORED = [
    "[2026-01-01 10:00:00,000 E 1 2] core_worker.cc:2465: Actor with class name: "
    "'PreemptionWatcher' and ID: '21' has constructor arguments in the object store and "
    "max_restarts > 0.",
    "Requesting resources: {'CPU': 1.0} * 2",
    "Setting up process group for: env:// [rank=0, world_size=2]",
    "Failed to query Ray Train Controller actor state. State API may be temporarily unavailable.",
]
KEPT = [
    "[2026-01-01 10:00:00,000 E 1 2] core_worker.cc:2465: Actor with class name: 'Miner' and ID: "
    "'21' has constructor arguments in the object store and max_restarts > 0.",
    "Attempting to start training worker group of size 2 with the following resources: "
    "[{'CPU': 1.0}] * 2",
    "step 1/6  loss 6.7027",
    "rank 1: CUDA out of memory",
]


def test_the_run_s_log_has_every_worker_line_except_the_ignored_ones(caplog):
    with caplog.at_level(logging.INFO, WORKER_LOGGER):
        session._log_lines({"ip": "10.0.0.1", "pid": 1, "lines": [*IGNORED, *KEPT]})
    assert caplog.messages == KEPT


@pytest.mark.parametrize(
    "message",
    [
        "Starting execution of Dataset dataset_1_0. Full logs are in /tmp/ray/logs/ray-data",
        "Execution plan of Dataset dataset_1_0: InputDataBuffer[Input] -> TaskPoolMapOperator[Map]",
        "✔️  Dataset dataset_1_0 execution finished in 15.77 seconds",
        "Progress bars disabled. To enable, set `enable_progress_bars = True`.",
        'Connecting to existing Serve app in namespace "serve".',
    ],
)
def test_the_driver_s_loggers_drop_only_the_ignored_messages(message, caplog):
    ignore_library_messages()
    for name in (*ray_data_loggers(), "ray.serve"):
        logger = logging.getLogger(name)
        assert not logger.filter(logger.makeRecord(name, logging.INFO, "", 1, message, (), None))
        failed = logger.makeRecord(name, logging.ERROR, "", 1, "Dataset %s failed", ("1",), None)
        assert logger.filter(failed)
