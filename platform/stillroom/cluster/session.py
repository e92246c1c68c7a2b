"""How a run comes to a Ray cluster, and goes from it."""

import logging
import math
import os
from typing import Any

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.worker import filter_autoscaler_events

from stillroom.cluster.join import join
from stillroom.config.scale import Scale
from stillroom.observability.log_context import as_json, parsed, take_over
from stillroom.observability.run_journal import WORKERS


def connect(scale: Scale) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
        UserError: when the named cluster cannot be reached, or does not take our token.
    """
    if ray.is_initialized():
        return
    _join(scale)
    _keep_workers_lines()


def _join(scale: Scale) -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # our own lines say how far it is
    address = os.environ.get("RAY_ADDRESS")
    if address:
        # The Train tab of a cluster's dashboard: without, it does not say that anything is trained.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        join(address)
        return
    # A laptop with fewer cores than the recipe has workers is slow, not refused.
    ray.init(
        # Only RAY_ADDRESS names a cluster: what else runs here may be somebody else's.
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(_most_cpus(scale))),
        include_dashboard=False,
        # Without a dashboard Ray Train's watchman warns every second that he cannot reach it.
        logging_config=ray.LoggingConfig(log_level="ERROR"),
    )


def resources() -> dict[str, float]:
    """What the cluster has in all: CPU, GPU, memory in bytes and so on."""
    connect(Scale())
    return dict(ray.cluster_resources())


def disconnect() -> None:
    """Leaves the cluster; what `connect` started on this machine ends."""
    ray.shutdown()


def _keep_workers_lines() -> None:
    """Has what Ray brings of its workers' output go into the run's log, and where all our lines are
    JSON, there alone."""
    global_worker_stdstream_dispatcher.remove_handler(WORKERS)
    global_worker_stdstream_dispatcher.add_handler(WORKERS, _keep_lines)
    if as_json():
        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
        take_over("ray")


def _keep_lines(brought: dict[str, Any]) -> None:
    kept = logging.getLogger(WORKERS)
    who = {"worker": f"{brought.get('ip')} {brought.get('pid')}"}
    lines = brought["lines"]
    if brought.get("pid") == "autoscaler":  # of which Ray brings its state, too, every five seconds
        lines = filter_autoscaler_events(lines)
    for line in lines:
        kept.info(line, extra={"fields": who | (parsed(line) or {})})


def _most_cpus(scale: Scale) -> float:
    trained = [workers.most * workers.cpus for workers in (scale.teacher, scale.student)]
    embedded = [pool.actors * pool.cpus for pool in (scale.vectors, scale.negatives, scale.report)]
    return max(trained + embedded)
