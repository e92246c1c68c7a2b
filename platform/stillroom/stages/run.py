"""Walks a plan and skips what exists."""

import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

from stillroom.artifacts import Artifact, Store
from stillroom.cluster import join
from stillroom.config.recipe import Recipe
from stillroom.config.scale import Scale
from stillroom.journal import WORKERS, Journal, journal
from stillroom.logs import as_json, parsed, take_over
from stillroom.plan import Step
from stillroom.stages.corpus import corpus
from stillroom.stages.negatives import negatives
from stillroom.stages.progress import showing
from stillroom.stages.release import release
from stillroom.stages.report import report
from stillroom.stages.student import student
from stillroom.stages.synthetic import synthetic
from stillroom.stages.teacher import teacher
from stillroom.stages.vectors import vectors

log = logging.getLogger(__name__)

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
    """Makes every step's artifact, in order, or finds it made; and keeps a journal of it."""
    store = Store(recipe.root)
    made: dict[str, Artifact] = {}
    about = {"recipe": recipe.name, "host": socket.gethostname(), "pid": os.getpid(), "job": job()}
    with journal(store, about) as kept:
        for step in steps:
            produced = produce(step, made, store, recipe.scale, kept)
            made[step.ref] = produced.artifact
            if produced.reused:
                kept.reused(step.ref)
            yield produced


def produce(
    step: Step, made: dict[str, Artifact], store: Store, scale: Scale, journal: Journal
) -> Produced:
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
        with journal.stage(step.ref) as ends, showing(step.ref):
            log.info("%s: begins", step.ref)
            summary = STAGES[step.stage](**step.args, **given, scale=scale, out=draft)
            seconds = time.monotonic() - began
            artifact = draft.publish(
                {**step.made_by, "run": journal.run, "seconds": seconds, "summary": summary}
            )
            ends |= {"outcome": "made"} | {k: summary[k] for k in ("memory_gib",) if k in summary}
            log.info("%s: made in %.0f s", step.ref, seconds)
    return Produced(step, artifact, False, seconds)


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


def job() -> str | None:
    """The id that `ray job submit` gave this process's job; None where it is none."""
    told = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    found: str | None = told.get("metadata", {}).get(JOB_ID_METADATA_KEY)
    return found


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
    for line in brought["lines"]:
        kept.info(line, extra={"fields": who | (parsed(line) or {})})


def _most_cpus(scale: Scale) -> float:
    trained = [workers.most * workers.cpus for workers in (scale.teacher, scale.student)]
    embedded = [pool.actors * pool.cpus for pool in (scale.vectors, scale.negatives, scale.report)]
    return max(trained + embedded)
