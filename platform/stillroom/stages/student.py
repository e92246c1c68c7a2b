"""A small encoder, distilled from the teacher's vectors and the negatives it mined."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stillroom.artifacts import Artifact, Draft, Store
from stillroom.config.models import Student as Section
from stillroom.config.models import StudentPhase
from stillroom.config.scale import Scale, TeacherApi
from stillroom.encoders.contract import Terms
from stillroom.encoders.encode import Encoder
from stillroom.encoders.store import create, load
from stillroom.errors import UserError
from stillroom.learning.batches import Rows
from stillroom.learning.distillation import Distillation
from stillroom.stages.api import remote_of
from stillroom.stages.batches import taught_batches
from stillroom.stages.corpus import CorpusFiles, evaluation_sets
from stillroom.stages.fit import Task, fit
from stillroom.stages.vectors import fresh, stored


def student(
    *,
    section: Section,
    phase: StudentPhase,
    seed: int,
    corpus: Artifact,
    teacher: Artifact,
    scale: Scale,
    out: Draft,
    vectors: Artifact | None = None,
    negatives: Artifact | None = None,
    student: Artifact | None = None,
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes an encoder folder, in the teacher's space or in one of its own.

    Args:
        vectors: the teacher's; None where it embeds each batch anew.
        negatives: where the phase asks for hard ones.
        student: the phase before, whose weights this one goes on with.
        trusted: holds "teacher" when that may run code that it brings with it.
    """
    terms = Terms.read(teacher.path)
    space = terms.space if section.space == "teacher" else out.path.name
    before = None if student is None else student.path
    begin = functools.partial(start, section, seed, space, terms, before)
    taught: Callable[..., tuple[Rows, Rows]]
    if vectors is None:
        access = (teacher, scale.teacher_api, out.store, "teacher" in trusted)
        taught = functools.partial(_afresh, *access)
    else:
        taught = functools.partial(_from_disk, teacher, vectors)
    task = Task(
        encoder=begin,
        batches=functools.partial(taught_batches, corpus, taught, negatives, phase, seed),
        objective=Distillation(**phase.losses.model_dump(), dims=section.dims),
        settings=phase,
        seed=seed,
        sets=functools.partial(evaluation_sets, corpus),
        evaluate_every=phase.evaluate_every,
    )
    return fit(task, scale.student, scale.tracking, out)


def _from_disk(
    teacher: Artifact, vectors: Artifact, files: CorpusFiles, device: torch.device
) -> tuple[Rows, Rows]:
    return stored(files, teacher, vectors)


def _afresh(
    teacher: Artifact,
    api: TeacherApi,
    store: Store,
    trust_remote_code: bool,
    files: CorpusFiles,
    device: torch.device,
) -> tuple[Rows, Rows]:
    encoder = remote_of(teacher.path, api, store) or load(
        teacher.path, device=str(device), trust_remote_code=trust_remote_code
    )
    return fresh(files, encoder)


def start(
    section: Section, seed: int, space: str, teacher: Terms, before: Path | None = None
) -> Encoder:
    """The encoder that a phase begins with.

    Raises:
        UserError: when its vectors would be no prefix of the teacher's, in whose space they are.
    """
    if before is not None:
        encoder = load(before, trainable=True, trust_remote_code=section.trust_remote_code)
        encoder.contract = encoder.contract.model_copy(update={"space": space})
        return encoder
    size = section.output_dims
    if section.space == "teacher":
        if size is not None and size not in teacher.dims:
            raise UserError(
                "student.output_dims",
                f"{size} is no size of the teacher's vectors, in whose space the student writes",
                f"Use {', '.join(str(one) for one in teacher.dims)}",
            )
        size = size or teacher.dims[0]
    encoder = create(
        section.base,
        pooling=section.pooling,
        prompts=None if section.prompts is None else section.prompts.model_dump(),
        max_tokens=section.max_tokens,
        precision=section.precision,
        space=space,
        layers=section.layers,
        projection_dims=size,
        seed=seed,
        trust_remote_code=section.trust_remote_code,
    )
    full = encoder.contract.dims[0]
    for prefix in section.dims or ():
        if prefix > full:
            raise UserError(
                "student.dims", f"{prefix} is more than the vectors' {full}", f"At most {full}"
            )
    sizes = tuple(sorted({*(section.dims or ()), full}, reverse=True))
    encoder.contract = encoder.contract.model_copy(update={"dims": sizes})
    return encoder
