"""Walks a plan and skips what exists."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stillroom.config.recipe import Recipe
from stillroom.config.scale import Scale
from stillroom.observability.run_journal import Journal, journal
from stillroom.pipeline.plan import Step
from stillroom.storage.artifacts import Artifact, Store

log = logging.getLogger(__name__)


def stage(name: str) -> Callable[..., dict[str, Any]]:
    """What makes a stage's artifact: the function in the module of that name.

    Loaded when it is needed, for that takes many seconds: where all exists, a run says so at once.
    """
    made: Callable[..., dict[str, Any]] = getattr(import_module(f"stillroom.stages.{name}"), name)
    return made


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
    from stillroom.cluster.gauges import showing
    from stillroom.cluster.session import connect

    connect(scale)
    with store.draft(step.stage, step.name, step.key) as draft:
        if draft.done is not None:
            return Produced(step, draft.done, True, time.monotonic() - began)
        with journal.stage(step.ref) as ends, showing(step.ref):
            log.info("%s: begins", step.ref)
            summary = stage(step.stage)(**step.args, **given, scale=scale, out=draft)
            seconds = time.monotonic() - began
            artifact = draft.publish(
                {**step.made_by, "run": journal.run, "seconds": seconds, "summary": summary}
            )
            ends |= {"outcome": "made"} | {k: summary[k] for k in ("memory_gib",) if k in summary}
            log.info("%s: made in %.0f s", step.ref, seconds)
    return Produced(step, artifact, False, seconds)


def job() -> str | None:
    """The id that `ray job submit` gave this process's job; None where it is none."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found: str | None = told.get("metadata", {}).get("job_submission_id")
    return found
