import json
from pathlib import Path

import pytest

from stillroom.artifacts import Store
from stillroom.config import read_recipe
from stillroom.plan import pipeline, why
from tiny import tiny_decoder, tiny_encoder

TINY = Path(__file__).parents[1] / "jobs" / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_decoder(folder / "teacher"), tiny_encoder(folder / "student")


@pytest.fixture
def planned(models, monkeypatch):
    monkeypatch.setenv("TINY_TEACHER", str(models[0]))
    monkeypatch.setenv("TINY_STUDENT", str(models[1]))

    def planned(*overrides):
        return pipeline(read_recipe(TINY, overrides))

    return planned


def changed(before, after):
    return [new.stage for old, new in zip(before, after, strict=True) if old.key != new.key]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("student.learning_rate=5e-4", ["student", "report", "release"]),
        ("report.bm25=false", ["report", "release"]),
        ("release.mean_retention=0.1", ["release"]),
        ("negatives.skip_first=1", ["negatives", "student", "report", "release"]),
        ("vectors.shard=65", ["vectors", "negatives", "student", "report", "release"]),
        (
            "corpus.max_pairs=200",
            ["corpus", "teacher", "vectors", "negatives", "student", "report", "release"],
        ),
        ("scale.teacher.workers=1", []),
        ("scale.student.engine=deepspeed", []),
        ("root=elsewhere", []),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(planned, override, stages):
    assert changed(planned(), planned(override)) == stages


def test_a_release_without_the_gate_is_another_release(planned, models):
    recipe = read_recipe(TINY)
    assert changed(pipeline(recipe), pipeline(recipe, gate=False)) == ["release"]


def test_other_weights_under_the_same_name_are_another_teacher(planned, models):
    before = planned()
    tiny_decoder(models[0], seed=9)
    assert changed(before, planned())[0] == "teacher"


def test_a_phase_with_hard_negatives_has_them_mined_by_the_phase_before(planned):
    phase = '{"objective": "contrastive", "steps": 2, "global_batch": 16, "learning_rate": 1e-3'
    steps = planned(f'teacher.phases=[{phase}}}, {phase}, "hard_negatives": 1}}]')
    assert [(step.stage, step.name) for step in steps[:5]] == [
        ("corpus", "tiny"),
        ("teacher", "tiny-phase1"),
        ("vectors", "tiny-phase1"),
        ("negatives", "tiny-phase1"),
        ("teacher", "tiny"),
    ]
    second = steps[4]
    assert second.inputs["negatives"] is steps[3]
    assert second.inputs["teacher"] is steps[1]


def test_why_names_the_fields_and_inputs_that_changed(planned, tmp_path):
    store = Store(str(tmp_path))
    student = next(step for step in planned() if step.stage == "student")
    assert why(student, store) == "not made yet"
    with store.draft("student", student.name, student.key) as draft:
        draft.publish(json.loads(json.dumps(student.made_by)))
    faster = planned("student.learning_rate=5e-4", "negatives.skip_first=1")
    reason = why(next(step for step in faster if step.stage == "student"), store)
    assert "student.learning_rate: 0.001 → 0.0005" in reason
    assert "negatives changed" in reason
    assert "vectors" not in reason
