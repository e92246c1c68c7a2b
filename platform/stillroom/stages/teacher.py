"""Base → teacher: one phase of training, or the base as it is."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.config.phases import Contrastive, Joint, Mntp, Phase, Simcse
from stillroom.config.scale import Scale
from stillroom.config.teacher import Teacher as Section
from stillroom.encoders.contract import Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import CombinedEncoder
from stillroom.encoders.files.create import combine, create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.layers.backbone import set_dropout
from stillroom.encoders.model_names import of_artifact
from stillroom.learning.objectives import contrastive as objectives
from stillroom.learning.objectives import token_prediction
from stillroom.stages import training_batches as batches
from stillroom.stages.api_teacher import contract_of
from stillroom.stages.corpus.artifact import evaluation_sets
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.training.driver import fit
from stillroom.training.task import Task


def teacher(
    *,
    section: Section,
    phase: Phase | None,
    seed: int,
    scale: Scale,
    out: Draft,
    corpus: Artifact | None = None,
    teacher: Artifact | None = None,
    negatives: Artifact | None = None,
) -> dict[str, Any]:
    """Writes an encoder folder that has a vector space of its own.

    Args:
        phase: how to train; None takes the base as it is.
        teacher: the phase before, whose weights this one goes on with.
    """
    begin = functools.partial(start, section, phase, seed, out.path.name, teacher)
    if section.api is not None:
        contract_of(section.api).write(out.path)
        return {}
    if phase is None:
        save(begin() if section.members is None else _together(section, out), out.path)
        return {}
    assert corpus is not None
    objective, data = parts(phase, corpus, negatives, seed)
    task = Task(
        begin,
        data,
        objective,
        phase,
        seed,
        merges=phase.merge_before,
        sets=functools.partial(evaluation_sets, corpus),
        evaluate_every=phase.evaluate_every if isinstance(phase, Contrastive) else None,
    )
    return fit(task, scale.teacher, scale.tracking, out)


def parts(
    phase: Phase, corpus: Artifact, negatives: Artifact | None, seed: int
) -> tuple[objectives.Objective, Callable[..., Any]]:
    """What a phase minimises, and its batches as a function of (encoder, place)."""
    match phase:
        case Mntp():
            return token_prediction.Mntp(), functools.partial(
                batches.masked_batches, corpus, phase, seed
            )
        case Simcse():
            return (
                objectives.Simcse(phase.temperature),
                functools.partial(batches.text_batches, corpus, phase, seed),
            )
        case Joint():
            return (
                token_prediction.Joint(
                    _contrastive(phase), phase.generation_weight, phase.generation_loss
                ),
                functools.partial(batches.joint_batches, corpus, negatives, phase, seed),
            )
        case Contrastive():
            return (
                _contrastive(phase),
                functools.partial(batches.pair_batches, corpus, negatives, phase, seed),
            )


def _contrastive(phase: Contrastive) -> objectives.Contrastive:
    return objectives.Contrastive(
        temperature=phase.temperature,
        in_batch=phase.in_batch,
        query_query=phase.query_query,
        passage_passage=phase.passage_passage,
        false_negative_margin=phase.false_negative_margin,
        dims=phase.dims,
    )


def start(
    section: Section,
    phase: Phase | None,
    seed: int,
    space: str,
    teacher: os.PathLike[str] | None,
) -> Encoder:
    """The encoder that a phase begins with."""
    before = None if teacher is None else Path(teacher)
    lora = section.lora.model_dump() if section.lora and phase is not None else None
    head = isinstance(phase, Mntp | Joint)
    if before is not None and phase is not None and phase.merge_before:
        encoder = create(
            str(before),
            precision=section.precision,
            space=space,
            lora=lora,
            head=head,
            seed=seed,
            trust_remote_code=section.trust_remote_code,
        )
        base = Contract.read(before).base
        encoder.contract = encoder.contract.model_copy(update={"base": base})
    elif before is not None:
        encoder = load(
            before, trainable=True, head=head, trust_remote_code=section.trust_remote_code
        )
        encoder.contract = encoder.contract.model_copy(update={"space": space})
    else:
        assert section.base is not None, "what has no base has no phases"
        encoder = create(
            section.base,
            attention=section.attention,
            pooling=section.pooling,
            latents=section.latents.model_dump(),
            echo=section.echo,
            append_eos=section.append_eos,
            prompts=None if section.prompts is None else section.prompts.model_dump(),
            pool_prompt=section.pool_prompt,
            max_tokens=section.max_tokens,
            precision=section.precision,
            space=space,
            lora=lora,
            head=head,
            seed=seed,
            trust_remote_code=section.trust_remote_code,
        )
    if isinstance(phase, Simcse):
        set_dropout(encoder.backbone, phase.dropout)
    if isinstance(phase, Contrastive) and phase.dims:
        sizes = sorted({*phase.dims, encoder.contract.dims[0]}, reverse=True)
        encoder.contract = encoder.contract.model_copy(update={"dims": tuple(sizes)})
    return encoder


def _together(section: Section, out: Draft) -> CombinedEncoder:
    """The members as one. All of their weights go into the artifact, which is whole anywhere."""
    assert section.members is not None
    members = [
        create(
            of_artifact(member.base, out.store),
            attention=member.attention,
            pooling=member.pooling,
            append_eos=member.append_eos,
            prompts=None if member.prompts is None else member.prompts.model_dump(),
            max_tokens=member.max_tokens,
            precision=section.precision,
            space=f"{out.path.name}/members/{number}",
            trust_remote_code=section.trust_remote_code,
        )
        for number, member in enumerate(section.members)
    ]
    return combine(members, section.combine, space=out.path.name)
