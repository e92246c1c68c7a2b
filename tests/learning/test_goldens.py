"""Losses of tiny trainings against golden files, to notice unintended changes of results.

Dropout masks come from torch's own generator, because MKL's differs by platform.
"""

import dataclasses

import pytest
import torch

from stillroom.config.load import read_recipe
from stillroom.config.phases import JointPhase, MntpPhase, SimcsePhase
from stillroom.config.student import TextDistillation
from stillroom.encoders.files.options import ContractOptions
from stillroom.learning.objectives.contrastive import Contrastive, Simcse
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.objectives.token_prediction import Joint, Mntp
from stillroom.stages.teacher import objective_and_batches
from support.golden_training import (
    TEACHER_DIMS,
    distillation_text_batches,
    joint_batches,
    language_model,
    losses,
    masked_batches,
    pair_batches,
    text_batches,
    tiny_encoder,
)
from support.goldens import Golden
from support.recipes import RECIPES

RECIPE_STEPS = 3  # of each phase


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("golden") / "base")


def seeded_dropout(states, p=0.5, training=True, inplace=False):
    return states * (torch.rand(states.shape) >= p) / (1 - p) if training else states


def test_a_contrastive_teacher_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, lora_dropout=0.0)
    measured = losses(encoder, Contrastive(temperature=0.05), pair_batches(encoder))
    golden("losses/teacher_contrastive_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_masked_prediction_teacher_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, lora_dropout=0.0, head=True)
    measured = losses(encoder, Mntp(), masked_batches(encoder))
    golden("losses/teacher_mntp_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_simcse_teacher_reproduces_its_golden_losses(base, golden, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", seeded_dropout)
    encoder = tiny_encoder(base, lora_dropout=0.2)
    measured = losses(encoder, Simcse(temperature=0.05), text_batches(encoder))
    golden("losses/teacher_simcse_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_joint_teacher_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, lora_dropout=0.0, head=True)
    objective = Joint(Contrastive(temperature=0.05), weight=0.5, mean_over="token")
    measured = losses(encoder, objective, joint_batches(encoder))
    golden("losses/teacher_joint_float32_cpu.txt").check(measured, rtol=1e-4)


def test_a_distilled_student_reproduces_its_golden_losses(base, golden):
    encoder = tiny_encoder(base, projection_dims=TEACHER_DIMS)
    objective = Distillation(
        cosine=1.0,
        pairwise_mse=20.0,
        similarity_order=10.0,
        ranking_kl=0.5,
        score_kl=0.5,
        margin_mse=1.0,
        contrastive=1.0,
        false_negative_margin=0.05,
        dims={TEACHER_DIMS: 1.0, 16: 0.5},
    )
    measured = losses(encoder, objective, pair_batches(encoder, sampled_passages=5))
    golden("losses/student_distillation_float32_cpu.txt").check(measured, rtol=1e-4)


# bfloat16 rounds to three digits, and kernels differ by processor.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.full)])
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_each_recipe_s_phases_reproduce_their_golden_losses(
    base, golden, file, precision, monkeypatch
):
    monkeypatch.setattr(torch.nn.functional, "dropout", seeded_dropout)
    recipe = read_recipe(file)
    measured = []
    for phase in recipe.teacher.phases:
        measured += teacher_losses(base, recipe.teacher, phase, precision)
    for phase in recipe.student.phases:
        measured += student_losses(base, recipe.student, phase, precision)
    path = f"losses/recipes/{recipe.name}_{precision}_cpu.txt"
    golden(path).check(measured, rtol=TOLERANCES[precision])


def teacher_losses(base, section, phase, precision):
    """The first losses of a teacher's phase, with the recipe's contract and objective."""
    encoder = tiny_encoder(
        base,
        dataclasses.replace(
            ContractOptions.from_fields(section),
            pooling=section.pooling or "mean",
            precision=precision,
            max_tokens=None,
            latents=section.latents and {"count": 4, "heads": 2, "head_dims": 8},
        ),
        lora_dropout=None if section.lora is None else section.lora.dropout,
        head=isinstance(phase, MntpPhase | JointPhase),
    )
    objective, _ = objective_and_batches(phase, None, None, seed=0)
    if isinstance(phase, MntpPhase):
        batches = masked_batches(encoder)
    elif isinstance(phase, SimcsePhase):
        batches = text_batches(encoder)
    else:
        if phase.matryoshka:
            phase = phase.model_copy(update={"matryoshka": {48: 1.0, 16: 0.5}})
            objective, _ = objective_and_batches(phase, None, None, seed=0)
        make = joint_batches if isinstance(phase, JointPhase) else pair_batches
        batches = make(encoder, hard_negatives=min(phase.hard_negatives, 3))
    return losses(encoder, objective, batches, steps=RECIPE_STEPS)


def student_losses(base, section, phase, precision):
    """The first losses of a student's phase, with the recipe's contract and losses."""
    options = dataclasses.replace(
        ContractOptions.from_fields(section),
        attention="bidirectional",
        pooling=section.pooling or "mean",
        precision=precision,
        max_tokens=None,
    )
    encoder = tiny_encoder(base, options, projection_dims=TEACHER_DIMS)
    dims = {TEACHER_DIMS: 1.0, 16: 0.5} if section.matryoshka else None
    objective = Distillation(**phase.losses.model_dump(), dims=dims)
    sampled = min(phase.ranking_kl_passages, 5)
    if isinstance(phase, TextDistillation):
        batches = distillation_text_batches(encoder, sampled_passages=sampled)
    else:
        batches = pair_batches(
            encoder, hard_negatives=min(phase.hard_negatives, 3), sampled_passages=sampled
        )
    return losses(encoder, objective, batches, steps=RECIPE_STEPS)


def test_a_golden_file_accepts_its_own_values_and_refuses_others(tmp_path):
    Golden(tmp_path / "new.txt", update=True).check([1.0, 2.5], rtol=1e-4)
    golden_file = Golden(tmp_path / "new.txt", update=False)
    golden_file.check([1.00005, 2.5], rtol=1e-4)
    with pytest.raises(AssertionError, match=r"new\.txt: .* 2.0e-04 at step 2, 2\.5005 for 2\.5"):
        golden_file.check([1.0, 2.5005], rtol=1e-4)
    with pytest.raises(AssertionError, match="2 values, not these"):
        golden_file.check([1.0], rtol=1e-4)
