"""What a student's queries lose among a teacher's passages, by the slow and obvious way."""

import math

import pytest
import torch

from stillroom.config.models import Student
from stillroom.config.reading import validated
from stillroom.errors import UserError
from stillroom.learning.distillation import Distillation
from stillroom.learning.objectives import Texts


class Given:
    """Forwards whose vectors are there already."""

    device = torch.device("cpu")

    def __init__(self, vectors):
        self.found = vectors

    def vectors(self, tokens):
        return self.found


def units(seed, count=7, dims=6):
    drawn = torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def softmax(scores):
    most = max(scores)
    powers = [math.exp(score - most) for score in scores]
    return [power / sum(powers) for power in powers]


def obvious(student, teacher, size):
    """Mean over texts of KL(teacher ‖ student), term by term."""
    total = 0.0
    for mine, its in zip(student, teacher, strict=True):
        cut = torch.nn.functional.normalize(teacher[:, :size], dim=-1)
        mine = mine[:size] / mine[:size].norm()
        wanted = softmax([float(its @ other) / 0.1 for other in teacher])
        found = softmax([float(mine @ other) / 0.2 for other in cut])
        total += sum(p * math.log(p / q) for p, q in zip(wanted, found, strict=True))
    return total / len(student)


@pytest.mark.parametrize("size", [6, 4])
def test_across_is_the_divergence_of_the_student_s_ranking_of_the_teacher_s_vectors(size):
    student, teacher = units(1), units(2)
    loss = Distillation(across=1.0, temperature=0.2, teacher_temperature=0.1, dims={size: 1.0})
    batch = Texts(tokens=[None] * 7, ids=torch.arange(7), teacher=teacher)
    total, figures = loss(Given(student), batch)
    assert total.item() == pytest.approx(obvious(student, teacher, size), rel=1e-5)
    assert figures["across"] == pytest.approx(total.item())


def test_across_is_nothing_to_a_student_that_writes_what_its_teacher_writes():
    teacher = units(3)
    batch = Texts(tokens=[None] * 7, ids=torch.arange(7), teacher=teacher)
    total, _ = Distillation(across=1.0)(Given(teacher.clone()), batch)
    assert total.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("loss", ["vector", "across"])
def test_a_student_in_a_space_of_its_own_has_no_vector_of_the_teacher_s_to_come_near_to(loss):
    phase = {
        "data": "texts",
        "steps": 1,
        "global_batch": 4,
        "learning_rate": 1e-3,
        "losses": {loss: 1.0},
    }
    section = {"base": "b", "space": "own", "phases": [phase]}
    with pytest.raises(UserError, match=f"losses.{loss} compares vectors.*space: teacher"):
        validated(Student, section, "student")
