"""The stage `teacher`: one phase of training, or the base as it is."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.config.phases import (
    ContrastivePhase,
    JointPhase,
    MntpPhase,
    SimcsePhase,
    TeacherPhase,
)
from stillroom.config.scale import Scale
from stillroom.config.teacher import Teacher as Section
from stillroom.encoders.contract import Comparison, Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.folder import read_comparison
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.backbone import set_dropout
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.model_names import locate_model
from stillroom.learning.batch_types import Metrics
from stillroom.learning.objectives import contrastive as objectives
from stillroom.learning.objectives import token_prediction
from stillroom.learning.objectives.interface import Objective
from stillroom.stages import training_batches as batches
from stillroom.stages.api_teacher import api_contract
from stillroom.stages.corpus.artifact import read_evaluation_sets
from stillroom.stages.untrained_teacher import UntrainedSummary, write_untrained_teacher
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.training.driver import fit
from stillroom.training.task import TrainingTask


def teacher(
    *,
    section: Section,
    phase: TeacherPhase | None,
    seed: int,
    scale: Scale,
    out: Draft,
    corpus: Artifact | None = None,
    teacher: Artifact | None = None,
    negatives: Artifact | None = None,
) -> Metrics | UntrainedSummary:
    """Trains one phase; writes an encoder folder with a new vector space.

    Args:
        phase: how to train; None takes the base as it is.
        teacher: of the phase before, whose weights this one starts from.

    Returns:
        The metrics of the step whose weights are kept, or the proof of a base as it is.
    """
    make_encoder = functools.partial(initial_encoder, section, phase, seed, out.path.name, teacher)
    if section.api is not None:
        api_contract(section.api).write(out.path)
        return {}
    if phase is None:
        return write_untrained_teacher(section, out)
    assert corpus is not None
    objective, make_batches = objective_and_batches(
        phase, corpus, negatives, seed, normalise=_comparison(section, teacher).normalise
    )
    task = TrainingTask(
        make_encoder=make_encoder,
        make_batches=make_batches,
        objective=objective,
        phase=phase,
        seed=seed,
        saves_merged=phase.merge_adapter_first,
        evaluation_sets=functools.partial(read_evaluation_sets, corpus),
        evaluate_every=phase.evaluate_every if isinstance(phase, ContrastivePhase) else None,
    )
    return fit(task, scale.teacher, scale.tracking, out)


def objective_and_batches(
    phase: TeacherPhase,
    corpus: Artifact,
    negatives: Artifact | None,
    seed: int,
    *,
    normalise: bool = True,
) -> tuple[Objective, Callable[..., Any]]:
    """A phase's objective, and its batches as a function of (encoder, worker shard).

    Args:
        normalise: whether the encoder's vectors are of unit length.
    """
    match phase:
        case MntpPhase():
            return token_prediction.Mntp(), functools.partial(
                batches.masked_batches, corpus, phase, seed
            )
        case SimcsePhase():
            return (
                objectives.Simcse(phase.temperature, normalise),
                functools.partial(batches.text_batches, corpus, phase, seed),
            )
        case JointPhase():
            return (
                token_prediction.Joint(
                    _contrastive(phase, normalise), phase.generation_weight, phase.generation_loss
                ),
                functools.partial(batches.joint_batches, corpus, negatives, phase, seed),
            )
        case ContrastivePhase():
            return (
                _contrastive(phase, normalise),
                functools.partial(batches.pair_batches, corpus, negatives, phase, seed),
            )


def _comparison(section: Section, before: os.PathLike[str] | None) -> Comparison:
    """How a phase's encoder compares vectors, without loading it.

    Args:
        before: the encoder of the phase before; None: the first phase.
    """
    if before is not None:
        return Contract.read(Path(before)).comparison
    assert section.base is not None, "only a teacher with a base has phases"
    folder = locate_model(section.base, include_code=section.trust_remote_code)
    return read_comparison(folder).changed_to(section.similarity)


def _contrastive(phase: ContrastivePhase, normalise: bool) -> objectives.Contrastive:
    return objectives.Contrastive(
        temperature=phase.temperature,
        in_batch_negatives=phase.in_batch_negatives,
        query_to_query=phase.query_to_query,
        passage_to_passage=phase.passage_to_passage,
        false_negative_margin=phase.false_negative_margin,
        dims=phase.matryoshka,
        normalise=normalise,
    )


def initial_encoder(
    section: Section,
    phase: TeacherPhase | None,
    seed: int,
    space: str,
    teacher: os.PathLike[str] | None,
) -> Encoder:
    """The encoder that a phase trains."""
    before = None if teacher is None else Path(teacher)
    lora = LoraOptions(**section.lora.model_dump()) if section.lora and phase is not None else None
    head = isinstance(phase, MntpPhase | JointPhase)
    if before is not None and phase is not None and phase.merge_adapter_first:
        encoder = create_encoder(
            str(before),
            space=space,
            options=ContractOptions(precision=section.precision),
            lora=lora,
            head=head,
            seed=seed,
            trust_remote_code=section.trust_remote_code,
        )
        base = Contract.read(before).base
        encoder.contract = encoder.contract.model_copy(update={"base": base})
    elif before is not None:
        encoder = load_encoder(
            before, trainable=True, head=head, trust_remote_code=section.trust_remote_code
        )
        encoder.contract = encoder.contract.model_copy(update={"space": space})
    else:
        assert section.base is not None, "only a teacher with a base has phases"
        encoder = create_encoder(
            section.base,
            space=space,
            options=ContractOptions.from_fields(section),
            lora=lora,
            head=head,
            seed=seed,
            trust_remote_code=section.trust_remote_code,
        )
    if isinstance(phase, SimcsePhase):
        set_dropout(encoder.backbone, phase.dropout)
    if isinstance(phase, ContrastivePhase) and phase.matryoshka:
        sizes = sorted({*phase.matryoshka, encoder.contract.dims[0]}, reverse=True)
        encoder.contract = encoder.contract.model_copy(update={"dims": tuple(sizes)})
    return encoder
