"""Makes the artifacts of a plan, and reuses those that exist."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stillroom.config.recipe import Recipe
from stillroom.config.scale import Scale
from stillroom.observability.run_journal import RunJournal, open_journal
from stillroom.pipeline.step import Step
from stillroom.storage.artifacts import Artifact, Store
from stillroom.storage.disk_space import full_disk_errors

# The module of each stage's function, which has the stage's name.
STAGES = {
    "synthetic": "stillroom.stages.synthetic.stage",
    "corpus": "stillroom.stages.corpus.stage",
    "teacher": "stillroom.stages.teacher",
    "vectors": "stillroom.stages.vectors.stage",
    "negatives": "stillroom.stages.negatives.stage",
    "student": "stillroom.stages.student",
    "report": "stillroom.stages.report.stage",
    "release": "stillroom.stages.release.stage",
}

log = logging.getLogger(__name__)


def stage_function(stage: str) -> Callable[..., Mapping[str, Any]]:
    """The function that makes a stage's artifact, and returns its summary.

    Imported when needed: the import takes seconds, and a run that reuses everything should end at
    once.
    """
    function: Callable[..., Mapping[str, Any]] = getattr(import_module(STAGES[stage]), stage)
    return function


@dataclass(frozen=True)
class StepResult:
    """A step's artifact, made or reused."""

    step: Step
    artifact: Artifact
    reused: bool
    seconds: float


def run_steps(recipe: Recipe, steps: list[Step]) -> Iterator[StepResult]:
    """Makes or reuses the artifact of every step, in order; keeps the run's journal."""
    store = Store(recipe.root)
    artifacts: dict[str, Artifact] = {}
    about = {
        "recipe": recipe.name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": ray_job_id(),
    }
    with open_journal(store, about) as journal:
        for step in steps:
            result = produce(step, artifacts, store, recipe.scale, journal)
            artifacts[step.ref] = result.artifact
            if result.reused:
                journal.reused(step.ref)
            yield result


def produce(
    step: Step,
    artifacts: Mapping[str, Artifact],
    store: Store,
    scale: Scale,
    journal: RunJournal,
) -> StepResult:
    """Makes or reuses a step's artifact.

    Args:
        artifacts: ref → artifact, of the steps before. Others are opened from the store.

    Raises:
        UserError: from the stage.
    """
    started_at = time.monotonic()
    if store.exists(step.stage, step.name, step.key):
        return StepResult(step, store.open(step.stage, step.name, step.key), True, 0.0)
    inputs = {
        role: artifacts.get(input_step.ref)
        or store.open(input_step.stage, input_step.name, input_step.key)
        for role, input_step in step.inputs.items()
    }
    # Imported here: Ray takes seconds, and a run that reuses everything does not need it.
    from stillroom.cluster.progress import show_progress
    from stillroom.cluster.session import connect

    # Opened first: a root that cannot be written is refused before Ray starts.
    with store.draft(step.stage, step.name, step.key) as draft:
        if draft.artifact is not None:  # made by another process meanwhile
            return StepResult(step, draft.artifact, True, time.monotonic() - started_at)
        connect(scale)
        with (
            journal.stage(step.ref) as event,
            show_progress(step.ref),
            full_disk_errors(draft.path),
        ):
            log.info("%s: begins", step.ref)
            summary = stage_function(step.stage)(**step.args, **inputs, scale=scale, out=draft)
            seconds = time.monotonic() - started_at
            artifact = draft.publish(
                {**step.made_by, "run": journal.run, "seconds": seconds, "summary": summary}
            )
            event["outcome"] = "made"
            if "memory_gib" in summary:
                event["memory_gib"] = summary["memory_gib"]
            log.info("%s: made in %.0f s", step.ref, seconds)
    return StepResult(step, artifact, False, seconds)


def ray_job_id() -> str | None:
    """The id that `ray job submit` gave this process's job; None outside a job."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job_id: str | None = config.get("metadata", {}).get("job_submission_id")
    return job_id
