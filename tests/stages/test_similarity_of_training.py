"""The objective that each stage trains with is that of its encoder's vectors."""

import json
from types import SimpleNamespace

import pytest

from stillroom.config.scale import Scale
from stillroom.config.student import Student
from stillroom.config.teacher import Teacher
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.stages import student as student_stage
from stillroom.stages import teacher as teacher_stage
from support.make_encoder import make_encoder

STEPS = {"steps": 1, "global_batch": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def models(decoder, encoder, tmp_path_factory):
    """A decoder as a teacher and a BERT as a student's base, of each similarity."""
    root = tmp_path_factory.mktemp("models")
    for similarity in ("cosine", "dot"):
        for name, folder in (("teacher", decoder), ("base", encoder)):
            model = make_encoder(folder, precision="float32", similarity=similarity)
            save_encoder(model, root / f"{similarity}-{name}")
    return root


@pytest.fixture
def tasks(monkeypatch):
    """The tasks that stages would train."""
    trained = []

    def fit(task, *others):
        trained.append(task)
        return {}

    for stage in (teacher_stage, student_stage):
        monkeypatch.setattr(stage, "fit", fit)
    monkeypatch.setattr(student_stage, "needs_start", lambda section: False)  # no vectors here
    return trained


def run_teacher(models, base, objective, *, before=None, **fields):
    phases = [{"objective": objective, **STEPS}]
    content = {"base": str(models / base), "phases": phases, **fields}
    section = Teacher.model_validate_json(json.dumps(content))
    teacher_stage.teacher(
        section=section, phase=section.phases[0], seed=0, scale=Scale(), corpus=object(),
        out=SimpleNamespace(path=models / "new"), teacher=before,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["contrastive", "simcse"])
def test_a_teacher_is_trained_on_the_scores_of_its_base_or_its_recipe(models, tasks, objective):
    cosine, dot = models / "cosine-teacher", models / "dot-teacher"
    run_teacher(models, "cosine-teacher", objective)
    run_teacher(models, "dot-teacher", objective)
    run_teacher(models, "cosine-teacher", objective, similarity="dot")
    run_teacher(models, "dot-teacher", objective, similarity="cosine")
    run_teacher(models, "cosine-teacher", objective, before=dot)  # the phase before decides
    run_teacher(models, "dot-teacher", objective, before=cosine)
    assert [task.objective.normalise for task in tasks] == [True, False, False, True, False, True]
    for task in tasks[:4]:
        assert task.make_encoder().contract.normalise == task.objective.normalise
        assert task.objective.temperature is None


def run_student(models, teacher, base, losses, *, before=None, **fields):
    phases = [{"data": "pairs", "hard_negatives": 0, "losses": losses, **STEPS}]
    content = {"base": str(models / f"{base}-base"), "phases": phases, **fields}
    section = Student.model_validate_json(json.dumps(content))
    student_stage.student(
        section=section, phase=section.phases[0], seed=0, scale=Scale(), corpus=object(),
        teacher=SimpleNamespace(path=models / f"{teacher}-teacher"), vectors=object(),
        out=SimpleNamespace(path=models / "new"), student=before,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "base", "fields", "expected"),
    [
        ("dot", "cosine", {"space": "teacher"}, (False, False)),
        ("dot", "cosine", {}, (True, False)),
        ("dot", "dot", {}, (False, False)),
        ("dot", "dot", {"similarity": "cosine"}, (True, False)),
        ("cosine", "dot", {}, (False, True)),
        ("cosine", "dot", {"space": "teacher"}, (True, True)),
    ],
)
def test_a_student_s_objective_has_both_models_scores(
    models, tasks, teacher, base, fields, expected
):
    run_student(models, teacher, base, {"score_kl": 1.0}, **fields)
    objective = tasks[0].objective
    assert (objective.normalise, objective.teacher_normalise) == expected


def test_a_later_phase_keeps_the_similarity_of_the_one_before(models, tasks):
    before = models / "dot-base"
    run_student(models, "dot", "cosine", {"score_kl": 1.0}, before=before, space="teacher")
    assert not tasks[0].objective.normalise


def test_a_loss_that_loses_lengths_is_refused_before_training(models, tasks):
    with pytest.raises(UserError, match=r"losses\.cosine: does not see the lengths"):
        run_student(models, "dot", "cosine", {"cosine": 1.0}, space="teacher")
    assert tasks == []
