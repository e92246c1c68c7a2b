"""Recipes: what is read, what is refused, and with which error."""

import pickle
from pathlib import Path

import pytest
import yaml

from stillroom.config.load import read_recipe
from stillroom.config.recipe import Recipe
from stillroom.config.student import rehearsed_phase
from stillroom.errors import UserError

RECIPES = sorted((Path(__file__).parents[2] / "jobs" / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """Writes a small valid recipe, changed by a function, and returns its path."""

    def write(change=lambda content: None):
        content = {
            "corpus": {
                "sources": {
                    "own": {"format": "files", "pairs": ["pairs.jsonl"]},
                    "more": {"format": "files", "passages": ["passages.jsonl"]},
                },
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
                "phases": [{"data": "pairs", "steps": 3, "global_batch": 4, "learning_rate": 1e-3}],
            },
        }
        change(content)
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    assert read_recipe(path).name == path.stem


def test_name_and_root_default_to_the_file_and_the_environment(recipe, monkeypatch):
    monkeypatch.setenv("STILLROOM_ROOT", "/elsewhere")
    read = read_recipe(recipe())
    assert (read.name, read.root) == ("mine", "/elsewhere")


def test_an_override_is_typed_like_the_file(recipe):
    read = read_recipe(
        recipe(),
        ["student.phases.0.learning_rate=5e-4", "teacher.phases.0.steps=7", "student.layers=[0,2]"],
    )
    assert read.student.phases[0].learning_rate == 5e-4
    assert read.teacher.phases[0].steps == 7
    assert read.student.layers == (0, 2)


@pytest.mark.parametrize(
    ("override", "field", "hint"),
    [
        ("student.phases.0.learning_rte=1", "student.phases.0.learning_rte", "'learning_rate'"),
        ("studnet.steps=1", "studnet", "'student'"),
        ("teacher.phases.0.temprature=1", "teacher.phases.0.temprature", "'temperature'"),
        ("corpus.sources.own.pars=1", "corpus.sources.own.pars", "'pairs'"),
        ("corpus.sources.own.format=fils", "corpus.sources.own", "'files'"),
        ("corpus.sources.own={format: files}", "corpus.sources.own", "names no file"),
        ("corpus.sources={}", "corpus.sources", "at least 1"),
        ("corpus.held_out.source=other", "held_out.source", "not a source"),
        ("corpus.held_out.source=more", "held_out.source", "no pairs"),
        ("corpus.max_pairs={other: 1}", "corpus", "not a source"),
        ("corpus.max_pairs={own: 0}", "corpus.max_pairs", "greater than 0"),
        ("corpus.near_duplicates={min_jaccard: 2}", "near_duplicates.min_jaccard", "less than"),
        (
            "teacher.phases=[{objective: simcse, steps: 1, global_batch: 2, learning_rate: 1, "
            "mix: {own: 1}, mix_temperature: 2}]",
            "teacher.phases",
            "leave out mix_temperature",
        ),
        ("student.phases.0.mix={other: 1}", "student.phases[0].mix", "not a source"),
        ("student.phases.0.mix={more: 1}", "student.phases[0].mix", "without pairs"),
        ("teacher.phases.0.mix={own: 1, more: 2}", "teacher.phases[0].mix", "without pairs"),
        ("teacher.phases.0.mix={own: 0}", "teacher.phases.0.mix.own", "greater than 0"),
        ("student.phases.0.learning_rate=-1", "student.phases.0.learning_rate", "greater than 0"),
        ("student.phases.0.steps=1.5", "student.phases.0.steps", "integer"),
        ("student.phases.0.steps=many", "student.phases.0.steps", "integer"),
        ("student.phases.0.global_batch=5", "student.phases[0].global_batch", "multiple"),
        ("student.phases.0.losses.cosine=1", "student", "space: teacher"),
        ("student.phases.0.losses={score_kl: 0, contrastive: 0}", "phases.0.losses", "margin_mse"),
        ("student.phases=[]", "student", "add one"),
        ("release.ndcg_by_set={held-oot: 0.5}", "release.ndcg_by_set", "the sets are held-out"),
        (
            "release.retention_by_set={own: 0.9}",
            "release.retention_by_set",
            "not an evaluation set",
        ),
        ("release.small_vectors={int4: 0.9}", "release.small_vectors.int4", "'binary+rescoring'"),
        ("release.asymmetric_retention=0.9", "asymmetric_retention", "space: teacher"),
        ("student.layers=[]", "student", "at least one layer, and each only once"),
        ("student.layers=[1,1]", "student", "at least one layer, and each only once"),
        ("student.size={layers: 2, hidden: 30, heads: 4}", "student.size", "evenly"),
        ("student.size={layers: 2, hidden: 32}", "student.size.heads", "is missing"),
        ("student.vocabulary_size=0", "student.vocabulary_size", "greater than 0"),
        ("negatives.sample_from=2", "negatives", "per_query"),
        ("corpus.held_out=null", "corpus", "evaluation"),
        ("scale.student.zero_stage=2", "scale.student", "deepspeed"),
    ],
)
def test_a_wrong_field_is_named_with_a_fix(recipe, override, field, hint):
    with pytest.raises(UserError) as error:
        read_recipe(recipe(), [override, "scale.student.workers=2"])
    assert field in str(error.value)
    assert hint in str(error.value)


def test_a_student_keeps_layers_or_starts_from_random_weights(recipe):
    size = "student.size={layers: 2, hidden: 32, heads: 4}"
    assert read_recipe(recipe(), [size]).student.size.intermediate is None
    with pytest.raises(UserError, match="size starts from random ones"):
        read_recipe(recipe(), [size, "student.layers=[0]"])


@pytest.mark.parametrize(("fields", "problem"), [
    ("size={layers: 2, hidden: 32, heads: 4}", "starts from the base's weights"),
    ("phases.0.online_teacher=true", "online_teacher is of the teacher's vectors"),
    ("phases.0.ranking_kl_passages=8", "ranking_kl_passages is of the teacher's vectors"),
])  # fmt: skip
def test_a_base_that_could_not_teach_its_student_is_refused(recipe, fields, problem):
    phase = (
        "student.phases=[{data: texts, target: base, steps: 1, global_batch: 8, "
        "learning_rate: 1e-3}]"
    )
    settings = ["student.space=teacher", "student.layers=1", phase]
    assert read_recipe(recipe(), settings).student.phases[0].target == "base"
    with pytest.raises(UserError, match=problem):
        read_recipe(recipe(), [*settings, f"student.{fields}"])


def test_a_base_teaches_itself_another_space_only(recipe):
    phase = (
        "student.phases=[{data: texts, target: base, steps: 1, global_batch: 8, "
        "learning_rate: 1e-3}]"
    )
    assert read_recipe(recipe(), ["student.space=teacher", phase]).student.layers is None
    with pytest.raises(UserError, match="would teach the student what it is"):
        read_recipe(recipe(), ["student.space=own", phase])


NUMBERS = "steps: 1, global_batch: 8, learning_rate: 1e-3"
PAIRS = f"{{data: pairs, {NUMBERS}, hard_negatives: 0, rehearsal_batch: 6}}"


def test_a_phase_rehearses_the_last_texts_before_it(recipe):
    texts = [f"{{data: texts, {NUMBERS}, passage_tokens: {n}}}" for n in (32, 48)]
    phases = f"student.phases=[{texts[0]}, {texts[1]}, {PAIRS}]"
    settings = ["student.space=teacher", phases]
    student = read_recipe(recipe(), settings).student
    rehearsed = rehearsed_phase(student.phases, 2)
    assert (rehearsed.passage_tokens, rehearsed.global_batch) == (48, 6)
    assert rehearsed_phase(student.phases, 1) is None
    with pytest.raises(UserError, match=r"rehearsal_batch \(6\) must be a multiple of .* \(4\)"):
        read_recipe(recipe(), [*settings, "scale.student.workers=4"])


@pytest.mark.parametrize(("before", "problem"), [
    ("", "there is none before"),
    (f"{{data: texts, online_teacher: true, {NUMBERS}}}, ", "set it the same for both"),
])  # fmt: skip
def test_a_rehearsal_without_texts_or_their_vectors_is_refused(recipe, before, problem):
    with pytest.raises(UserError, match=rf"rehearsal_batch repeats .*{problem}"):
        read_recipe(recipe(), ["student.space=teacher", f"student.phases=[{before}{PAIRS}]"])


def test_all_wrong_fields_are_reported_together(recipe):
    with pytest.raises(UserError) as error:
        read_recipe(recipe(), ["student.phases.0.steps=0", "teacher.attention=sideways"])
    assert "student.phases.0.steps" in str(error.value)
    assert "teacher.attention" in str(error.value)


def test_a_missing_recipe_and_broken_yaml_raise_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("corpus: {}\nteacher: [")
    with pytest.raises(
        UserError, match=r"broken.yaml: is not valid YAML: line 3, column 1: did not"
    ):
        read_recipe(broken)
    broken.write_text("- a list")
    with pytest.raises(UserError, match="broken.yaml: is not a mapping of sections"):
        read_recipe(broken)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "teacher.base=${oc.env:NOT_SET}",
            "mine.yaml: teacher.base: needs the environment variable NOT_SET, which is not set. "
            "Set it (export NOT_SET=…), or write a value instead of ${oc.env:NOT_SET}.",
        ),
        (
            "student.base=${teacher.bas}",
            "mine.yaml: student.base: refers to ${teacher.bas}, which is not a field of this "
            "recipe. Correct the reference.",
        ),
        (
            "teacher.base=${oc.what:1}",
            "mine.yaml: teacher.base: the reference cannot be resolved: Unsupported interpolation "
            "type oc.what. Correct the text within ${…}.",
        ),
        ("teacher.base=[", "teacher.base=[: is not valid YAML: line 2, column 1: did not find"),
        ("teacher", "teacher: is not an override. Write it as section.field=value."),
    ],
)
def test_an_unresolvable_or_unparsable_value_is_named_with_a_fix(
    recipe, monkeypatch, override, message
):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UserError) as error:
        read_recipe(recipe(), [override, "environment=[NOT_SET]"])
    assert message in str(error.value)
    assert "full_key" not in str(error.value)


def test_a_reference_to_the_environment_is_replaced(recipe, monkeypatch):
    monkeypatch.setenv("BASE", "some/model")
    overrides = ["teacher.base=${oc.env:BASE}", "student.base=${teacher.base}"]
    read = read_recipe(recipe(), ["environment=[BASE]", *overrides])
    assert (read.teacher.base, read.student.base) == ("some/model", "some/model")


def test_an_error_survives_pickling():
    error = UserError("a", "b", "c")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a: b. c."


def test_a_recipe_cannot_be_changed(recipe):
    read = read_recipe(recipe())
    assert isinstance(read, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        read.seed = 3


MNTP = {"objective": "mntp", "steps": 1, "global_batch": 4, "learning_rate": 1e-3}
JOINT = {**MNTP, "objective": "joint", "generation_batch": 4}


TALK = {"talk": {"format": "files", "conversations": ["talk.jsonl"]}}


@pytest.mark.parametrize(
    ("phase", "sources", "problem"),
    [
        ({**JOINT, "generation_data": "pairs"}, {}, None),
        (JOINT, TALK, None),
        (JOINT, {}, "teacher.phases[0].generation_data is 'conversations', and no source has any"),
        ({**MNTP, "mix": {"own": 1.0, "more": 2.0}}, {}, None),
        ({**MNTP, "mix": {"talk": 1.0}}, TALK, "phases[0].mix names 'talk', a source without pas"),
    ],
)
def test_a_phase_is_valid_only_with_data_to_train_on(recipe, phase, sources, problem):
    def change(content):
        content["teacher"]["phases"] = [phase]
        content["corpus"]["sources"].update(sources)

    if problem is None:
        assert read_recipe(recipe(change)).teacher.phases[0].objective == phase["objective"]
    else:
        with pytest.raises(UserError) as error:
            read_recipe(recipe(change))
        assert problem in str(error.value)


def test_without_any_pairs_the_error_names_the_phase_that_needs_them(recipe):
    def change(content):
        content["corpus"] = {
            "sources": {"more": {"format": "files", "passages": ["passages.jsonl"]}},
            "evaluation": {"own": "folder"},
        }
        content["teacher"]["phases"] = [MNTP]

    with pytest.raises(
        UserError, match=r"student.phases\[0\] needs pairs, and no source under corpus.sources"
    ):
        read_recipe(recipe(change))


# --- prompts by name ------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["teacher", "student"])
def test_a_prompt_s_name_is_for_queries_unless_roles_are_given(recipe, section):
    for given, names in (
        ("web_search_query", ("web_search_query", None)),
        ({"passage": "sts"}, (None, "sts")),
    ):
        path = recipe(lambda content, given=given: content[section].update(prompt=given))
        prompt = getattr(read_recipe(path, []), section).prompt
        assert (prompt.query, prompt.passage) == names


@pytest.mark.parametrize("section", ["teacher", "student"])
def test_prompts_as_texts_and_by_name_are_refused_together(recipe, section):
    path = recipe(lambda content: content[section].update(prompt="web", prompts={"query": "web: "}))
    with pytest.raises(UserError, match=f"{section}: prompts gives the texts and prompt names"):
        read_recipe(path, [])
