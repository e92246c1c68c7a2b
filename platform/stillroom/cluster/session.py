"""Connects a run to a Ray cluster, or starts Ray on this machine."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import ray

from stillroom.cluster.join import join_cluster
from stillroom.cluster.library_messages import ignore_library_messages, is_ignored
from stillroom.cluster.ray_private import autoscaler_events, handle_worker_output
from stillroom.cluster.start import start_ray
from stillroom.config.scale import Scale
from stillroom.observability.log_context import (
    json_lines_enabled,
    parse_json_line,
    redirect_library_logs,
)
from stillroom.observability.run_journal import WORKER_LOGGER

API_SERVER_VARIABLE = "RAY_API_SERVER_ADDRESS"
NO_API_SERVER = "http://127.0.0.1:1"  # nothing listens on this port


def connect(scale: Scale) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
        UserError: when the named cluster cannot be reached, or refuses our token, or Ray does not
            start here.
    """
    if ray.is_initialized():
        return
    ignore_library_messages()
    _join_or_start(scale)
    _log_worker_output()


def _join_or_start(scale: Scale) -> None:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        # The dashboard's Train tab shows runs only with this.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        join_cluster(address)
        return
    with _api_server_address(NO_API_SERVER):
        # A laptop with fewer cores than the recipe's workers is allowed; it is just slow.
        start_ray(
            num_cpus=max(os.cpu_count() or 1, math.ceil(_max_cpus(scale))),
            # Without a dashboard Ray Train warns every second that it cannot reach one.
            logging_config=ray.LoggingConfig(log_level="ERROR"),
        )


@contextlib.contextmanager
def _api_server_address(address: str) -> Iterator[None]:
    """Sets the address of Ray's API server for the processes that are started in the block.

    Without one, Ray Train's actors query the server of any Ray on this machine, and
    print a traceback where they find several.
    """
    before = os.environ.get(API_SERVER_VARIABLE)
    os.environ[API_SERVER_VARIABLE] = address
    try:
        yield
    finally:
        del os.environ[API_SERVER_VARIABLE]
        if before is not None:
            os.environ[API_SERVER_VARIABLE] = before


def cluster_resources() -> dict[str, float]:
    """Total resources of the cluster by Ray's names: CPU, GPU, memory in bytes and so on."""
    connect(Scale())
    return dict(ray.cluster_resources())


def disconnect() -> None:
    """Leaves the cluster, and stops what `connect` started on this machine."""
    ray.shutdown()


def _log_worker_output() -> None:
    """Sends the workers' output to the run's log; with JSON lines, only there."""
    as_json = json_lines_enabled()
    handle_worker_output(WORKER_LOGGER, _log_lines, print_too=not as_json)
    if as_json:
        redirect_library_logs("ray")


def _log_lines(batch: dict[str, Any]) -> None:
    """Logs one message of Ray's: `lines` of a process with `ip` and `pid`."""
    logger = logging.getLogger(WORKER_LOGGER)
    worker = {"worker": f"{batch.get('ip')} {batch.get('pid')}"}
    lines = batch["lines"]
    if batch.get("pid") == "autoscaler":
        lines = autoscaler_events(lines)
    for line in lines:
        if is_ignored(line):
            continue
        logger.info(line, extra={"fields": worker | (parse_json_line(line) or {})})


def _max_cpus(scale: Scale) -> float:
    """CPUs that the largest stage needs at once."""
    training = [workers.max_workers * workers.cpus for workers in (scale.teacher, scale.student)]
    pools = [pool.actors * pool.cpus for pool in (scale.vectors, scale.negatives, scale.report)]
    return max(training + pools)
