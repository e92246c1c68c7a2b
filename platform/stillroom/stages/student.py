"""A small encoder, distilled from the teacher's vectors and the negatives it mined."""

import functools
from typing import Any

from stillroom.artifacts import Artifact, Draft
from stillroom.config.models import Student as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Terms
from stillroom.encoders.encode import Encoder
from stillroom.encoders.store import create
from stillroom.learning.objectives import Distillation
from stillroom.stages.batches import pair_batches
from stillroom.stages.fit import Task, fit


def student(
    *,
    section: Section,
    seed: int,
    corpus: Artifact,
    vectors: Artifact,
    negatives: Artifact,
    scale: Scale,
    out: Draft,
) -> dict[str, Any]:
    """Writes an encoder folder, in the teacher's space or in one of its own."""
    task = Task(
        encoder=functools.partial(_start, section, seed, out.path.name, vectors),
        batches=functools.partial(pair_batches, corpus, negatives, vectors, section, seed),
        objective=Distillation(**section.losses.model_dump()),
        settings=section,
        seed=seed,
    )
    return fit(task, scale.student, scale.tracking, out)


def _start(section: Section, seed: int, space: str, vectors: Artifact) -> Encoder:
    teacher = Terms.read(vectors.path)
    shares = section.space == "teacher"
    return create(
        section.base,
        pooling=section.pooling,
        prompts=None if section.prompts is None else section.prompts.model_dump(),
        max_tokens=section.max_tokens,
        precision=section.precision,
        space=teacher.space if shares else space,
        layers=section.layers,
        projection_dims=teacher.dims[0] if shares else None,
        seed=seed,
        trust_remote_code=section.trust_remote_code,
    )
