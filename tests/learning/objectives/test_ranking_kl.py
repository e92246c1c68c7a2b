"""`ranking_kl` against a plain loop, its sampled passages, and where a recipe may use it."""

import math

import numpy as np
import pytest
import torch

from stillroom.config.student import Student
from stillroom.config.validation import validate
from stillroom.errors import UserError
from stillroom.learning.batch_types import TextBatch
from stillroom.learning.batches import PairData
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.source_runs import SourceRuns


class FixedVectors:
    """A runner that returns prepared vectors."""

    device = torch.device("cpu")

    def __init__(self, vectors):
        self.vectors = vectors

    def embed(self, texts):
        return self.vectors


def unit_vectors(seed, count=7, dims=6):
    vectors = torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def softmax(scores):
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def ranking_kl_slowly(student, teacher, sampled, size):
    """Mean over texts of KL(teacher ‖ student), term by term."""
    total, targets = 0.0, [*teacher, *sampled]
    for student_vector, teacher_vector in zip(student, teacher, strict=True):
        cut_targets = [target[:size] / target[:size].norm() for target in targets]
        cut = student_vector[:size] / student_vector[:size].norm()
        teacher_shares = softmax([float(teacher_vector @ target) / 0.1 for target in targets])
        student_shares = softmax([float(cut @ target) / 0.2 for target in cut_targets])
        pairs = zip(teacher_shares, student_shares, strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    return total / len(student)


@pytest.mark.parametrize("count", [0, 9])
@pytest.mark.parametrize("size", [6, 4])
def test_ranking_kl_is_the_divergence_of_the_two_rankings_of_the_teacher_s_vectors(size, count):
    student, teacher, sampled = unit_vectors(1), unit_vectors(2), unit_vectors(3, count)
    loss = Distillation(ranking_kl=1.0, temperature=0.2, teacher_temperature=0.1, dims={size: 1.0})
    batch = TextBatch([None] * 7, torch.arange(7), teacher, sampled if count else None)
    total, metrics = loss(FixedVectors(student), batch)
    assert total.item() == pytest.approx(
        ranking_kl_slowly(student, teacher, sampled, size), rel=1e-5
    )
    assert metrics["ranking_kl"] == pytest.approx(total.item())


def test_ranking_kl_is_zero_for_a_student_with_its_teacher_s_vectors():
    teacher = unit_vectors(3)
    batch = TextBatch([None] * 7, torch.arange(7), teacher, unit_vectors(4, 9))
    total, _ = Distillation(ranking_kl=1.0)(FixedVectors(teacher.clone()), batch)
    assert total.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", ["cosine", "ranking_kl"])
def test_a_student_in_its_own_space_cannot_be_compared_with_the_teacher_s_vectors(loss):
    phase = {
        "data": "texts",
        "steps": 1,
        "global_batch": 4,
        "learning_rate": 1e-3,
        "losses": {loss: 1.0},
    }
    section = {"base": "b", "space": "own", "phases": [phase]}
    with pytest.raises(UserError, match=f"losses.{loss} compares vectors.*space: teacher"):
        validate(Student, section, "student")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"losses": {"cosine": 1.0}}, "has no effect: losses.ranking_kl has weight 0"),
        (
            {"losses": {"ranking_kl": 1.0}, "online_teacher": True},
            "embed 4,096 passages at every step",
        ),
    ],
)
def test_passages_are_sampled_only_for_ranking_kl_and_only_from_stored_vectors(fields, message):
    phase = {
        "data": "texts", "steps": 1, "global_batch": 4, "learning_rate": 1e-3,
        "ranking_kl_passages": 4096, **fields,
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        validate(Student, {"base": "b", "space": "teacher", "phases": [phase]}, "student")


def test_sampled_passages_are_the_same_for_all_workers_and_differ_by_step():
    passages = unit_vectors(5, 40).numpy()
    data = PairData([], [""] * 40, np.zeros(0), SourceRuns.single(0), teacher_passages=passages,
                    sampleable_rows=np.arange(1, 40, 2))  # fmt: skip
    first, repeated, next_step = (
        data.sample_teacher_passages(8, seed=1, step=step).numpy() for step in (3, 3, 4)
    )
    assert (first == repeated).all() and (first != next_step).any()
    rows = [int(np.flatnonzero((passages == vector).all(1))[0]) for vector in first]
    assert len(set(rows)) == 8 and all(row % 2 for row in rows)
    assert len(data.sample_teacher_passages(99, seed=1, step=0)) == 20  # all of them
    assert data.sample_teacher_passages(0, seed=1, step=0) is None
