import pickle
from pathlib import Path

import pytest
import yaml

from stillroom.config import Recipe, read_recipe
from stillroom.errors import UserError

RECIPES = sorted((Path(__file__).parents[1] / "jobs" / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """Writes a small valid recipe, changed by a function, and returns its path."""

    def write(change=lambda content: None):
        content = {
            "corpus": {
                "source": {"format": "files", "pairs": ["pairs.jsonl"]},
                "held_out": {"queries": 5, "passages": 10},
            },
            "teacher": {
                "base": "some/base",
                "phases": [
                    {
                        "objective": "contrastive",
                        "steps": 3,
                        "global_batch": 4,
                        "learning_rate": 1e-3,
                    }
                ],
            },
            "student": {
                "base": "other/base",
                "steps": 3,
                "global_batch": 4,
                "learning_rate": 1e-3,
            },
        }
        change(content)
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_we_ship_is_valid(path, monkeypatch):
    monkeypatch.setenv("TINY_TEACHER", "teacher")
    monkeypatch.setenv("TINY_STUDENT", "student")
    assert read_recipe(path).name == path.stem


def test_the_name_is_the_file_s_and_the_root_the_environment_s(recipe, monkeypatch):
    monkeypatch.setenv("STILLROOM_ROOT", "/elsewhere")
    read = read_recipe(recipe())
    assert (read.name, read.root) == ("mine", "/elsewhere")


def test_an_override_is_typed_like_the_file(recipe):
    read = read_recipe(
        recipe(),
        ["student.learning_rate=5e-4", "teacher.phases.0.steps=7", "student.layers=[0,2]"],
    )
    assert read.student.learning_rate == 5e-4
    assert read.teacher.phases[0].steps == 7
    assert read.student.layers == (0, 2)


@pytest.mark.parametrize(
    ("override", "field", "hint"),
    [
        ("student.learning_rte=1", "student.learning_rte", "'learning_rate'"),
        ("studnet.steps=1", "studnet", "'student'"),
        ("teacher.phases.0.temprature=1", "teacher.phases.0", "'temperature'"),
        ("corpus.source.pars=1", "corpus.source", "'pairs'"),
        ("student.learning_rate=-1", "student.learning_rate", "greater than 0"),
        ("student.steps=1.5", "student.steps", "integer"),
        ("student.steps=many", "student.steps", "integer"),
        ("student.global_batch=5", "student.global_batch", "multiple"),
        ("student.losses.vector=1", "student", "space: teacher"),
        ("negatives.sample_from=2", "negatives", "per_query"),
        ("corpus.held_out=null", "corpus", "evaluation"),
        ("scale.student.zero_stage=2", "scale.student", "deepspeed"),
    ],
)
def test_a_wrong_field_is_named_with_a_way_out(recipe, override, field, hint):
    with pytest.raises(UserError) as fault:
        read_recipe(recipe(), [override, "scale.student.workers=2"])
    assert field in str(fault.value)
    assert hint in str(fault.value)


def test_every_fault_is_reported_at_once(recipe):
    with pytest.raises(UserError) as fault:
        read_recipe(recipe(), ["student.steps=0", "teacher.attention=sideways"])
    assert "student.steps" in str(fault.value)
    assert "teacher.attention" in str(fault.value)


def test_a_missing_recipe_and_broken_yaml_are_errors_of_ours(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("corpus: [")
    with pytest.raises(UserError, match="broken.yaml"):
        read_recipe(broken)


def test_an_error_survives_pickling():
    fault = UserError("a", "b", "c")
    again = pickle.loads(pickle.dumps(fault))
    assert str(again) == str(fault) == "a: b. c."


def test_a_recipe_cannot_be_changed(recipe):
    read = read_recipe(recipe())
    assert isinstance(read, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        read.seed = 3
