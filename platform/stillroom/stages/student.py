"""A small encoder, distilled from the teacher's vectors and the negatives it mined."""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.config.scale import Scale, TeacherApi
from stillroom.config.student import Student as Section
from stillroom.config.student import StudentPhase
from stillroom.data.cleaning.sampling import evenly
from stillroom.encoders.contract import Role, Terms
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.layers.backbone import set_dropout
from stillroom.encoders.tokens.prompter import Tokens
from stillroom.errors import UserError
from stillroom.learning.batches import Rows
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.projection import fit_projection
from stillroom.stages.api_teacher import remote_of
from stillroom.stages.corpus.artifact import CorpusFiles, evaluation_sets
from stillroom.stages.training_batches import taught_batches
from stillroom.stages.vectors.teacher_vectors import Taught, Teaching, fresh, stored
from stillroom.storage.artifacts import Artifact, Draft, Store
from stillroom.training.driver import fit
from stillroom.training.task import Task

FITTED_ON = 1024  # queries, and as many passages


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
    if vectors is None:
        access = (teacher, scale.teacher_api, out.store, "teacher" in trusted)
        taught = Taught(corpus, functools.partial(_afresh, *access))
    else:
        taught = Taught(corpus, functools.partial(_from_disk, teacher, vectors))
    prepare = None
    if student is None:
        space = terms.space if section.space == "teacher" else out.path.name
        begin = functools.partial(start, section, seed, space, terms, taught)
        if section.space == "teacher":
            prepare = functools.partial(fit_start, taught, phase)
    else:
        begin = functools.partial(go_on, section, student, out.path.name)
    task = Task(
        encoder=begin,
        prepare=prepare,
        batches=functools.partial(taught_batches, taught, negatives, phase, seed),
        objective=Distillation(**phase.losses.model_dump(), dims=section.dims),
        settings=phase,
        seed=seed,
        sets=functools.partial(evaluation_sets, corpus),
        evaluate_every=phase.evaluate_every,
    )
    return fit(task, scale.student, scale.tracking, out)


def _from_disk(
    teacher: Artifact, vectors: Artifact, files: CorpusFiles, device: torch.device
) -> tuple[Teaching, Teaching]:
    return stored(files, teacher, vectors)


def _afresh(
    teacher: Artifact,
    api: TeacherApi,
    store: Store,
    trust_remote_code: bool,
    files: CorpusFiles,
    device: torch.device,
) -> tuple[Teaching, Teaching]:
    encoder = remote_of(teacher.path, api, store) or load(
        teacher.path, device=str(device), trust_remote_code=trust_remote_code
    )
    return fresh(files, encoder)


def start(section: Section, seed: int, space: str, teacher: Terms, taught: Taught) -> Encoder:
    """The encoder that the first phase begins with.

    Raises:
        UserError: when its vectors would be no prefix of the teacher's, in whose space they are.
    """
    size = section.output_dims
    if section.space == "teacher":
        if size is not None and size not in teacher.dims:
            raise UserError(
                "student.output_dims",
                f"{size} is no size of the teacher's vectors, in whose space the student writes",
                f"Use {', '.join(str(one) for one in teacher.dims)}",
            )
        size = size or teacher.dims[0]
    encoder = bare(section, taught.files, seed=seed, space=space, projection_dims=size)
    full = encoder.contract.dims[0]
    for prefix in section.dims or ():
        if prefix > full:
            raise UserError(
                "student.dims", f"{prefix} is more than the vectors' {full}", f"At most {full}"
            )
    set_dropout(encoder.backbone, section.dropout)
    sizes = tuple(sorted({*(section.dims or ()), full}, reverse=True))
    encoder.contract = encoder.contract.model_copy(update={"dims": sizes})
    return encoder


def bare(
    section: Section,
    files: CorpusFiles,
    *,
    seed: int,
    space: str,
    projection_dims: int | None = None,
) -> Encoder:
    """What the section makes of its base, without anything of the teacher's."""
    return create(
        section.base,
        pooling=section.pooling,
        prompts=None if section.prompts is None else section.prompts.model_dump(),
        max_tokens=section.max_tokens,
        precision=section.precision,
        space=space,
        layers=section.layers,
        size=None if section.size is None else section.size.model_dump(exclude_none=True),
        vocabulary=section.vocabulary,
        texts=itertools.chain(files.passages, files.queries),
        projection_dims=projection_dims,
        seed=seed,
        trust_remote_code=section.trust_remote_code,
    )


def go_on(section: Section, before: os.PathLike[str], name: str) -> Encoder:
    """The encoder that a later phase begins with; of a space of its own, that has a new name."""
    encoder = load(Path(before), trainable=True, trust_remote_code=section.trust_remote_code)
    set_dropout(encoder.backbone, section.dropout)
    if section.space == "own":
        encoder.contract = encoder.contract.model_copy(update={"space": name})
    return encoder


def fit_start(taught: Taught, phase: StudentPhase, encoder: Encoder) -> None:
    """Begins the projection into the teacher's space where it comes nearest to the teacher's
    vectors of some texts of both roles, cut as they will be in training."""
    queries, passages = taught.rows(encoder.device)
    parts: list[tuple[Role, list[str], Rows, int]] = [
        ("query", taught.files.queries, queries, phase.query_tokens),
        ("passage", taught.files.passages, passages, phase.passage_tokens),
    ]
    tokens: list[Tokens] = []
    vectors = []
    for role, texts, rows_of, most in parts:
        rows = evenly(len(texts), FITTED_ON)
        if len(rows):
            tokens += encoder.prompter([texts[row] for row in rows], role, max_tokens=most)
            vectors.append(rows_of[rows].astype(np.float32))
    size = encoder.contract.dims[0]
    vectors_nd = torch.nn.functional.normalize(
        torch.from_numpy(np.concatenate(vectors))[:, :size], dim=-1
    )
    fit_projection(encoder, tokens, vectors_nd)
