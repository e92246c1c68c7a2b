"""The stage `student`: one phase of distillation into a small encoder."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from stillroom.cluster.capacity import ray_options, require_capacity
from stillroom.config.scale import Scale, TeacherApi
from stillroom.config.student import (
    PairDistillation,
    StudentPhase,
    TextDistillation,
    TextLosses,
    distils_base,
)
from stillroom.config.student import Student as Section
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import BaseContract, Comparison, Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.folder import read_comparison
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.encoders.layers.backbone import set_dropout
from stillroom.encoders.model_names import locate_model
from stillroom.errors import UserError
from stillroom.learning.objectives.distillation import Distillation, Rehearsal
from stillroom.learning.objectives.interface import Objective
from stillroom.learning.order import WorkerShard
from stillroom.stages.api_teacher import api_encoder
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets, read_guards
from stillroom.stages.student_start import (
    StudentStart,
    all_texts,
    describe_start,
    fit_start,
    given_layers,
    needs_start,
)
from stillroom.stages.training_batches import distillation_batches, rehearsal_batches
from stillroom.stages.vectors.teacher_vectors import (
    OpenVectors,
    TeacherVectors,
    VectorSource,
    online_vectors,
    stored_vectors,
)
from stillroom.storage.artifacts import Artifact, Draft, Store
from stillroom.training.driver import fit
from stillroom.training.task import TrainingTask

log = logging.getLogger(__name__)

MakeBatches = Callable[[Encoder, WorkerShard], Any]


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
    base_teaches: bool = False,
    rehearsed: TextDistillation | None = None,
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Distils one phase; writes an encoder folder.

    Args:
        vectors: the teacher's; None if the teacher encodes each batch online.
        negatives: for a phase with hard negatives.
        student: of the phase before, whose weights this one starts from.
        base_teaches: this phase or a later one distils the base.
        rehearsed: an earlier phase, with the batch of its texts beside the pairs of this one.
        trusted: holds "teacher" when that may run code that comes with it.

    Returns:
        The metrics of the step whose weights are kept, and the `start` of the first phase.
    """
    contract = BaseContract.read(teacher.path)
    comparison = _comparison(section, contract, student)

    def compared(each: StudentPhase) -> Comparison:
        """How the vectors compare from which a phase learns."""
        return comparison if distils_base(each) else contract.comparison

    for each in (phase, rehearsed):
        if each is not None:
            check_losses(each.losses, comparison, compared(each), "student.phases.losses")
    if vectors is None:
        access = (teacher, scale.teacher_api, out.store, "teacher" in trusted)
        open_vectors: OpenVectors = functools.partial(_open_online, *access)
    else:
        open_vectors = functools.partial(_open_stored, teacher, vectors)
    teacher_vectors = TeacherVectors(corpus, open_vectors)
    space = contract.space if section.space == "teacher" else out.path.name
    initial = functools.partial(initial_encoder, section, seed, space, contract, teacher_vectors)
    if student is None:
        start = StudentStart.read(out.path)
        if start is None and needs_start(section):
            require_capacity("student", scale.student, 1)
            task_of_start = ray.remote(**ray_options(scale.student))(fit_start)
            start = ray.get(
                task_of_start.remote(
                    section, phase, seed, teacher_vectors, initial, base_teaches=base_teaches
                )
            )
        make_encoder = functools.partial(initial, start or StudentStart(given_layers(section)))
    else:
        start = StudentStart.read(Path(student))
        make_encoder = functools.partial(load_next_phase, section, student, out.path.name)
    if start is not None:
        for line in describe_start(start):
            log.info(line)
        start.write(out.path)

    def distil(
        each: StudentPhase, mined: Artifact | None, seed: int
    ) -> tuple[MakeBatches, Distillation]:
        """A phase's batches and objective."""
        targets = teacher_vectors
        if distils_base(each):
            base = (start or StudentStart()).of_base()
            assert base.base_maps is not None or section.space == "own", "a random map teaches none"
            targets = base_vectors(corpus, functools.partial(initial, base))
        objective = Distillation(
            **each.losses.model_dump(),
            dims=section.matryoshka,
            normalise=comparison.normalise,
            teacher_normalise=compared(each).normalise,
        )
        return functools.partial(distillation_batches, targets, mined, each, seed), objective

    make_batches: MakeBatches
    objective: Objective
    make_batches, objective = make_pairs, of_pairs = distil(phase, negatives, seed)
    if rehearsed is not None:
        assert isinstance(phase, PairDistillation)
        # Another seed than the pairs', because equal seeds give equal permutations.
        make_texts, of_texts = distil(rehearsed, None, seed + 1)
        make_batches = functools.partial(rehearsal_batches, make_pairs, make_texts)
        objective = Rehearsal(of_pairs, of_texts, phase.rehearsal_weight)
    task = TrainingTask(
        make_encoder=make_encoder,
        make_batches=make_batches,
        objective=objective,
        phase=phase,
        seed=seed,
        evaluation_sets=functools.partial(selection_sets, corpus),
        evaluate_every=phase.evaluate_every,
    )
    metrics = fit(task, scale.student, scale.tracking, out)
    return {**metrics, **({} if start is None else {"start": start.summary()})}


def selection_sets(corpus: Artifact) -> dict[str, EvaluationSet]:
    """The sets that choose the best weights: the corpus's, and those from elsewhere.

    By the corpus's alone, weights that have forgotten other fields would be the best.
    """
    return {**read_evaluation_sets(corpus), **read_guards(corpus)}


def _comparison(
    section: Section, teacher: BaseContract, before: os.PathLike[str] | None
) -> Comparison:
    """How a phase's encoder compares vectors, without loading it.

    Args:
        before: the encoder of the phase before; None: the first phase.
    """
    if before is not None:
        return Contract.read(Path(before)).comparison
    folder = locate_model(section.base, include_code=section.trust_remote_code)
    return student_comparison(section, teacher.comparison, read_comparison(folder))


def student_comparison(section: Section, teacher: Comparison, base: Comparison) -> Comparison:
    """How the student compares vectors: as its teacher in the teacher's space, else as its base.

    Raises:
        UserError: when the recipe wants another similarity than the teacher's space has.
    """
    if section.space == "own":
        return base.changed_to(section.similarity)
    if section.similarity not in (None, teacher.similarity):
        raise UserError(
            "student.similarity",
            f"is {section.similarity}, and the teacher's space is searched by {teacher.similarity}",
            "Leave it out, or set student.space: own",
        )
    return teacher


def check_losses(losses: TextLosses, student: Comparison, teacher: Comparison, where: str) -> None:
    """Refuses losses that would compare what these two models cannot have in common.

    Raises:
        UserError: naming the loss.
    """
    if losses.cosine and not student.normalise:
        raise UserError(
            f"{where}.cosine",
            "does not see the lengths of vectors, and in the teacher's space scores depend on them "
            "(its similarity is dot)",
            "Use squared_l2, which fits both directions and lengths",
        )
    for name in ("pairwise_mse", "margin_mse"):
        if getattr(losses, name, 0) and student.normalise and not teacher.normalise:
            raise UserError(
                f"{where}.{name}",
                "compares the student's cosines with the teacher's inner products of raw vectors, "
                "which have another scale",
                "Set student.similarity: dot, or use score_kl or similarity_order",
            )


def _open_stored(
    teacher: Artifact, vectors: Artifact, corpus: CorpusData, device: torch.device
) -> tuple[VectorSource, VectorSource]:
    return stored_vectors(corpus, teacher, vectors)


def _open_online(
    teacher: Artifact,
    api: TeacherApi,
    store: Store,
    trust_remote_code: bool,
    corpus: CorpusData,
    device: torch.device,
) -> tuple[VectorSource, VectorSource]:
    encoder = api_encoder(teacher.path, api, store) or load_encoder(
        teacher.path, device=str(device), trust_remote_code=trust_remote_code
    )
    return online_vectors(corpus, encoder)


def base_vectors(corpus: Artifact, make_base: Callable[[], Encoder]) -> TeacherVectors:
    """The vectors of a student's own base, which encodes each batch as it comes."""
    return TeacherVectors(corpus, functools.partial(_open_base, make_base))


def _open_base(
    make_base: Callable[[], Encoder], corpus: CorpusData, device: torch.device
) -> tuple[VectorSource, VectorSource]:
    return online_vectors(corpus, make_base().to(device).eval(), own_prompts=True)


def initial_encoder(
    section: Section,
    seed: int,
    space: str,
    teacher: BaseContract,
    teacher_vectors: TeacherVectors,
    start: StudentStart,
) -> Encoder:
    """The encoder that the first phase trains.

    Args:
        start: its layers, and its projection.

    Raises:
        UserError: when it shares the teacher's space, but its vectors would not be a prefix of the
            teacher's.
    """
    size = section.output_dims
    if section.space == "teacher":
        if size is not None and size not in teacher.dims:
            raise UserError(
                "student.output_dims",
                f"{size} is not a size of the teacher's vectors, whose space the student shares",
                f"Use {', '.join(map(str, teacher.dims))}",
            )
        size = size or teacher.dims[0]
    encoder = untrained_student(
        section,
        teacher_vectors.corpus_data,
        start,
        seed=seed,
        space=space,
        projection_dims=size,
    )
    start.apply(encoder)
    full = encoder.contract.dims[0]
    for size in section.matryoshka or ():
        if size > full:
            raise UserError(
                "student.matryoshka",
                f"{size} is more than the vectors' {full}",
                f"Use at most {full}",
            )
    set_dropout(encoder.backbone, section.dropout)
    sizes = tuple(sorted({*(section.matryoshka or ()), full}, reverse=True))
    comparison = student_comparison(section, teacher.comparison, encoder.contract.comparison)
    encoder.contract = encoder.contract.model_copy(update={"dims": sizes, **comparison._asdict()})
    return encoder


def untrained_student(
    section: Section,
    corpus: CorpusData,
    start: StudentStart,
    *,
    seed: int,
    space: str,
    projection_dims: int | None = None,
) -> Encoder:
    """The base with the section's changes, before it learns from the teacher.

    Args:
        start: the layers that it keeps, and the corpus's tokens where they are counted already.
    """
    counts = start.token_counts
    return create_encoder(
        section.base,
        space=space,
        options=ContractOptions.from_fields(section),
        resize=Resize(
            layers=start.layers,
            size=None if section.size is None else section.size.model_dump(exclude_none=True),
            vocabulary_size=section.vocabulary_size,
            texts=all_texts(corpus),
            token_counts=None if counts is None else counts.numpy(),
        ),
        projection_dims=projection_dims,
        seed=seed,
        trust_remote_code=section.trust_remote_code,
    )


def load_next_phase(section: Section, folder: os.PathLike[str], space: str) -> Encoder:
    """The encoder that a later phase trains.

    Args:
        folder: of the encoder from the phase before.
        space: id of the vector space, if the student has a separate space.
    """
    encoder = load_encoder(
        Path(folder), trainable=True, trust_remote_code=section.trust_remote_code
    )
    set_dropout(encoder.backbone, section.dropout)
    if section.space == "own":
        encoder.contract = encoder.contract.model_copy(update={"space": space})
    return encoder
