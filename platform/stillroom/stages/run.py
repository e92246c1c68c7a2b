"""Walks a plan and skips what exists."""

import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from stillroom.artifacts import Artifact, Store
from stillroom.config.recipe import Recipe
from stillroom.config.scale import Scale
from stillroom.errors import UserError
from stillroom.plan import Step
from stillroom.stages.corpus import corpus
from stillroom.stages.negatives import negatives
from stillroom.stages.release import release
from stillroom.stages.report import report
from stillroom.stages.student import student
from stillroom.stages.synthetic import synthetic
from stillroom.stages.teacher import teacher
from stillroom.stages.vectors import vectors

log = logging.getLogger(__name__)

REACH_S = 10  # seconds in which a cluster's head answers
STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    "synthetic": synthetic,
    "corpus": corpus,
    "teacher": teacher,
    "vectors": vectors,
    "negatives": negatives,
    "student": student,
    "report": report,
    "release": release,
}


@dataclass(frozen=True)
class Produced:
    step: Step
    artifact: Artifact
    reused: bool
    seconds: float


def run(recipe: Recipe, steps: list[Step]) -> Iterator[Produced]:
    """Makes every step's artifact, in order, or finds it made."""
    store = Store(recipe.root)
    made: dict[str, Artifact] = {}
    for step in steps:
        produced = produce(step, made, store, recipe.scale)
        made[step.ref] = produced.artifact
        yield produced


def produce(step: Step, made: dict[str, Artifact], store: Store, scale: Scale) -> Produced:
    began = time.monotonic()
    if store.exists(step.stage, step.name, step.key):
        return Produced(step, store.open(step.stage, step.name, step.key), True, 0.0)
    given = {
        role: made.get(of.ref) or store.open(of.stage, of.name, of.key)
        for role, of in step.inputs.items()
    }
    connect(scale)
    with store.draft(step.stage, step.name, step.key) as draft:
        if draft.done is not None:
            return Produced(step, draft.done, True, time.monotonic() - began)
        log.info("%s: begins", step.ref)
        summary = STAGES[step.stage](**step.args, **given, scale=scale, out=draft)
        seconds = time.monotonic() - began
        artifact = draft.publish({**step.made_by, "seconds": seconds, "summary": summary})
    log.info("%s: made in %.0f s", step.ref, seconds)
    return Produced(step, artifact, False, seconds)


def connect(scale: Scale) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine.

    Raises:
        UserError: when the named cluster cannot be reached.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # our own lines say how far it is
    address = os.environ.get("RAY_ADDRESS")
    if address:
        # The Train tab of a cluster's dashboard: without, it does not say that anything is trained.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        try:
            _knock(address)
            ray.init(address=address)
        except (OSError, ValueError, RuntimeError) as fault:
            raise UserError(
                f"RAY_ADDRESS={address}",
                f"the cluster cannot be reached: {' '.join(str(fault).split())}",
                "Start it (`ray start --head`), correct the address, or unset RAY_ADDRESS to "
                "run on this machine",
            ) from fault
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


def _knock(address: str) -> None:
    """Raises OSError where nothing listens: Ray itself would go on trying for minutes."""
    if named := re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", address):
        socket.create_connection((named[1], int(named[2])), timeout=REACH_S).close()


def _most_cpus(scale: Scale) -> float:
    trained = [workers.most * workers.cpus for workers in (scale.teacher, scale.student)]
    embedded = [pool.actors * pool.cpus for pool in (scale.vectors, scale.negatives, scale.report)]
    return max(trained + embedded)
