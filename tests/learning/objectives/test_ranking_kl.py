"""What a student's queries lose among a teacher's passages, by the slow and obvious way."""

import math

import numpy as np
import pytest
import torch

from stillroom.config.load import validated
from stillroom.config.student import Student
from stillroom.errors import UserError
from stillroom.learning.batch_types import Texts
from stillroom.learning.batches import PairData
from stillroom.learning.objectives.distillation import Distillation


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


def obvious(student, teacher, drawn, size):
    """Mean over texts of KL(teacher ‖ student), term by term."""
    total, ranked = 0.0, [*teacher, *drawn]
    for mine, its in zip(student, teacher, strict=True):
        cut = [other[:size] / other[:size].norm() for other in ranked]
        mine = mine[:size] / mine[:size].norm()
        wanted = softmax([float(its @ other) / 0.1 for other in ranked])
        found = softmax([float(mine @ other) / 0.2 for other in cut])
        total += sum(p * math.log(p / q) for p, q in zip(wanted, found, strict=True))
    return total / len(student)


@pytest.mark.parametrize("drawn", [0, 9])
@pytest.mark.parametrize("size", [6, 4])
def test_across_is_the_divergence_of_the_student_s_ranking_of_the_teacher_s_vectors(size, drawn):
    student, teacher, more = units(1), units(2), units(3, drawn)
    loss = Distillation(across=1.0, temperature=0.2, teacher_temperature=0.1, dims={size: 1.0})
    batch = Texts([None] * 7, torch.arange(7), teacher, more if drawn else None)
    total, figures = loss(Given(student), batch)
    assert total.item() == pytest.approx(obvious(student, teacher, more, size), rel=1e-5)
    assert figures["across"] == pytest.approx(total.item())


def test_across_is_nothing_to_a_student_that_writes_what_its_teacher_writes():
    teacher = units(3)
    batch = Texts([None] * 7, torch.arange(7), teacher, units(4, 9))
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"losses": {"vector": 1.0}}, "ranked by losses.across, which has weight 0"),
        ({"losses": {"across": 1.0}, "online": True}, "embed 4,096 passages at every step"),
    ],
)
def test_passages_are_drawn_for_across_alone_and_from_vectors_that_are_there(given, said):
    phase = {
        "data": "texts", "steps": 1, "global_batch": 4, "learning_rate": 1e-3,
        "across_passages": 4096, **given,
    }  # fmt: skip
    with pytest.raises(UserError, match=said):
        validated(Student, {"base": "b", "space": "teacher", "phases": [phase]}, "student")


def test_what_is_drawn_is_the_same_for_all_workers_and_other_passages_at_each_step():
    passages = units(5, 40).numpy()
    data = PairData([], [""] * 40, np.zeros(0), np.zeros(0), teacher_passages=passages,
                    drawable=np.arange(1, 40, 2))  # fmt: skip
    first, again, next_one = (data.drawn(8, seed=1, step=step).numpy() for step in (3, 3, 4))
    assert (first == again).all() and (first != next_one).any()
    rows = [int(np.flatnonzero((passages == one).all(1))[0]) for one in first]
    assert len(set(rows)) == 8 and all(row % 2 for row in rows)
    assert len(data.drawn(99, seed=1, step=0)) == 20  # all that there are
    assert data.drawn(0, seed=1, step=0) is None
