"""`stillroom init` writes recipes that are valid, fit the user's file, and never overwrites one."""

import json

import pytest
import yaml

from stillroom.cli.shipped_files import shipped_files, shipped_text
from stillroom.config.load import read_recipe
from stillroom.preflight.starter_recipe import PairFacts, fill_template, fitted_values, set_values
from stillroom.serving.config import ServeArgs
from support.in_process_cli import run_command

RECIPES = [name for name in shipped_files() if not name.startswith("serve/")]


@pytest.fixture
def stillroom(tmp_path):
    def run(*words):
        return run_command(*words, cwd=tmp_path)

    return run


def write_pairs(path, count, negatives=0, words=30):
    rows = [
        {
            "query": f"question number {i}",
            "positive": f"answer {i} " + "word " * words,
            **({"negatives": [f"wrong answer {i}"] * negatives} if negatives else {}),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", RECIPES)
def test_a_copied_recipe_is_the_shipped_one_under_the_new_file_s_name(stillroom, tmp_path, name):
    done = stillroom("init", "--from", name, "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "stillroom check mine.yaml" in done.stdout
    assert (tmp_path / "mine.yaml").read_text() == shipped_text(name)
    assert read_recipe(tmp_path / "mine.yaml").name == "mine"


def test_without_options_it_copies_the_quickstart(stillroom, tmp_path):
    done = stillroom("init", "mine.yaml", "--json")
    assert json.loads(done.stdout) == {"recipe": "mine.yaml", "from": "quickstart", "notes": []}
    assert (tmp_path / "mine.yaml").read_text() == shipped_text("quickstart")


def test_a_serving_configuration_is_copied_with_the_command_that_deploys_it(stillroom, tmp_path):
    done = stillroom("init", "--from", "serve/autoscaled", "serving.yaml")
    assert "serve deploy serving.yaml" in done.stdout
    [application] = yaml.safe_load((tmp_path / "serving.yaml").read_text())["applications"]
    assert ServeArgs.read(application["args"]).releases


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--from", "quikstart", "new.yaml"], "Use one of distil-e5-mistral, "),
        (["--from", "tiny", "--pairs", "pairs.jsonl", "new.yaml"], "Use one of them"),
        (["there.yaml"], "there.yaml: exists already"),
        (["New Recipe.yaml"], "is not a recipe's file name"),
        (["new.json"], "end in .yaml"),
        (["nowhere/new.yaml"], "cannot be written"),
        (["--pairs", "none.jsonl", "new.yaml"], "none.jsonl"),
        (["--pairs", "few.jsonl", "new.yaml"], "holds 12 pairs with 12 distinct passages, too few"),
        (["--pairs", "texts.jsonl", "new.yaml"], "holds 1 passages and no pairs"),
    ],
)
def test_a_recipe_that_cannot_be_written_is_refused_and_no_file_changes(
    stillroom, tmp_path, words, expected
):
    (tmp_path / "there.yaml").write_text("mine")
    (tmp_path / "texts.jsonl").write_text('{"text": "a passage"}\n')
    write_pairs(tmp_path / "few.jsonl", 12)
    done = stillroom("init", *words)
    assert done.returncode == 2 and expected in done.stderr, done.stderr
    assert (tmp_path / "there.yaml").read_text() == "mine"
    assert not (tmp_path / "new.yaml").exists()


def test_a_recipe_for_a_file_of_pairs_fits_it_and_passes_the_check(stillroom, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 400, negatives=2)
    done = stillroom("init", "--pairs", "pairs.jsonl", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "400 pairs with 400 distinct passages and 2 negatives per pair" in done.stdout
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert recipe.corpus.sources["help"].pairs == ("pairs.jsonl",)
    assert (recipe.corpus.held_out.queries, recipe.corpus.held_out.passages) == (80, 80)
    [teacher], [student] = recipe.teacher.phases, recipe.student.phases
    assert teacher.global_batch == student.global_batch == 16
    assert (teacher.hard_negatives, teacher.negatives) == (1, "given")
    assert teacher.passage_tokens == student.passage_tokens == 48 == recipe.student.max_tokens
    models = ["teacher.base=random:llama", "student.base=random:bert", "student.pooling=mean"]
    checked = stillroom("check", "mine.yaml", *models)
    assert checked.returncode == 0, checked.stderr
    assert "pairs.jsonl: 400 pairs, 400 with negatives" in checked.stdout


def test_invalid_rows_are_counted_in_a_note(stillroom, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", 50)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"query": 3}\n')
    done = stillroom("init", "--pairs", "pairs.jsonl", "mine.yaml")
    assert done.returncode == 0 and "would stop the run: 1." in done.stdout


def test_scores_that_decide_are_named_in_a_note(stillroom, tmp_path):
    rows = [{"query": f"q{i}", "passage": f"text {i}", "label": i % 2} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = stillroom("init", "--pairs", "pairs.jsonl", "mine.yaml")
    assert "label from 0 to 1. Without corpus.sources.help.min_score" in done.stdout


def facts(**changes):
    defaults = {
        "location": "pairs.jsonl", "pairs": 5000, "passages": 5000, "negatives_per_pair": 0.0,
        "query_tokens": 10, "passage_tokens": 100, "measured": True, "language": "en",
        "skipped_rows": 0,
    }  # fmt: skip
    return PairFacts(**{**defaults, **changes})


@pytest.mark.parametrize("pairs", [40, 100, 1000, 30_000, 10_000_000])
@pytest.mark.parametrize("tokens", [1, 100, 5000])
def test_any_size_of_data_gives_a_valid_recipe(tmp_path, pairs, tokens):
    size = facts(pairs=pairs, passages=pairs, query_tokens=tokens, passage_tokens=tokens)
    path = tmp_path / "fitted.yaml"
    path.write_text(fill_template(shipped_text("help-desk"), size))
    recipe = read_recipe(path)
    held_out = recipe.corpus.held_out
    assert held_out.queries <= held_out.passages <= pairs / 4
    assert recipe.teacher.phases[0].global_batch <= (pairs - held_out.passages) / 4


def test_a_note_advises_other_models_for_texts_that_are_not_english():
    notes = [note for note in facts(language="de").summary()["notes"] if "language" in note]
    assert len(notes) == 1 and "German" in notes[0] and "multilingual" in notes[0]
    assert not [note for note in facts().summary()["notes"] if "language" in note]


def test_set_values_changes_only_the_values_at_the_given_paths():
    text = "a:\n  b: 1   # first\n  c:\n    - x: 2\n      b: 3\n    - x: 4\nb: 5\n"
    changed = set_values(text, {"a.c.0.b": 30, "a.c.1.x": 40, "a.b": ["it's: here"]})
    assert changed == (
        'a:\n  b: ["it\'s: here"]  # first\n  c:\n    - x: 2\n      b: 30\n    - x: 40\nb: 5\n'
    )
    assert yaml.safe_load(changed)["a"] == {
        "b": ["it's: here"], "c": [{"x": 2, "b": 30}, {"x": 40}],
    }  # fmt: skip
    with pytest.raises(KeyError, match=r"a\.d"):
        set_values(text, {"a.d": 1})


def test_every_fitted_value_has_a_field_in_the_template():
    filled = yaml.safe_load(fill_template(shipped_text("help-desk"), facts()))
    for path, value in fitted_values(facts()).items():
        node = filled
        for key in path.split("."):
            node = node[int(key) if key.isdecimal() else key]
        assert node == value
