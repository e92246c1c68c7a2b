"""Base → teacher: one phase of training, or the base as it is."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.artifacts import Artifact, Draft
from stillroom.config import Contrastive, Scale
from stillroom.config import Teacher as Section
from stillroom.encoders.encode import Encoder
from stillroom.encoders.store import create, load, save
from stillroom.learning import objectives
from stillroom.learning.batches import PairData
from stillroom.stages.corpus import CorpusFiles
from stillroom.stages.fit import Task, fit


def teacher(
    *,
    section: Section,
    phase: Contrastive | None,
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
    before = None if teacher is None else teacher.path
    start = functools.partial(_start, section, phase is not None, seed, out.path.name, before)
    if phase is None:
        save(start(), out.path)
        return {}
    assert corpus is not None
    task = Task(
        encoder=start,
        data=functools.partial(training_pairs, corpus, negatives),
        objective=objectives.Contrastive(temperature=phase.temperature),
        settings=phase,
        seed=seed,
    )
    return fit(task, scale.teacher, out)


def _start(section: Section, trained: bool, seed: int, space: str, before: Path | None) -> Encoder:
    """The encoder that a phase begins with."""
    if before is not None:
        encoder = load(before, trainable=True)
        encoder.contract = encoder.contract.model_copy(update={"space": space})
        return encoder
    return create(
        section.base,
        attention=section.attention,
        pooling=section.pooling,
        append_eos=section.append_eos,
        prompts=None if section.prompts is None else section.prompts.model_dump(),
        pool_prompt=section.pool_prompt,
        max_tokens=section.max_tokens,
        precision=section.precision,
        space=space,
        lora=section.lora.model_dump() if section.lora and trained else None,
        seed=seed,
    )


def training_pairs(corpus: Artifact, negatives: Artifact | None) -> PairData:
    """The corpus's pairs, with what was mined for them."""
    files = CorpusFiles.read(corpus)
    return PairData(
        queries=files.queries,
        passages=files.passages,
        positive=files.positive,
        negatives=None if negatives is None else np.load(negatives.path / "negatives.npy"),
    )
