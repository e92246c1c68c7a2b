"""`check` shows which text each role of teacher and student gets, before any run."""

import json

import pytest

from stillroom.config.load import read_recipe
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.files.sentence_transformers import MODEL_CONFIG
from stillroom.errors import UserError
from stillroom.preflight.inputs import check_inputs
from stillroom.storage.artifacts import Store
from support.make_encoder import make_encoder

TINY = "jobs/recipes/tiny.yaml"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_encoder(make_encoder("random:bert"), folder)
    (folder / "contract.json").unlink()
    options = json.loads((folder / MODEL_CONFIG).read_text())
    options["prompts"] = {"query": "query: ", "web": "web: "}
    (folder / MODEL_CONFIG).write_text(json.dumps(options))
    return folder


def shown(tmp_path, *overrides, stages=("teacher", "student")):
    recipe = read_recipe(TINY, [f"root={tmp_path}", *overrides])
    findings = check_inputs(recipe, Store(recipe.root), stages)
    return {finding.what: finding.detail for finding in findings}


def test_teacher_and_student_each_show_both_roles(tmp_path):
    prompt = r"'Instruct: Find the documentation\nQuery: ' + text: <s> In st r u … er y : Ġ …"
    student = {"student query": "text: [CLS] … [SEP]", "student passage": "text: [CLS] … [SEP]"}
    assert shown(tmp_path) == {
        "teacher query": prompt,
        "teacher passage": "text: <s> …",
        **student,
    }
    ended = shown(tmp_path, "teacher.append_eos=true")
    assert ended["teacher query"] == f"{prompt} </s>"
    assert ended["teacher passage"] == "text: <s> … </s>"
    assert shown(tmp_path, stages=["student"]) == student


def test_prompts_are_chosen_by_name_and_a_source_s_own_are_shown_too(published, tmp_path):
    lines = shown(
        tmp_path,
        f"student.base={published}",
        "student.prompt={passage: web}",
        "corpus.sources.environment.prompts={query: 'find: '}",
    )
    assert lines["student query"].startswith("'query: ' + text: [CLS]")
    assert lines["student passage"].startswith("'web: ' + text: [CLS]")
    assert lines["teacher query of environment"] == "'find: ' + text: <s> f in d : Ġ …"
    assert "student query of environment" not in lines


def test_members_have_prompts_by_name(published, tmp_path):
    member = {"base": str(published), "prompt": "web"}
    members = json.dumps([member, {**member, "prompt": "none"}])
    recipe = [f"teacher={{members: {members}}}"]
    with pytest.raises(
        UserError,
        match="teacher.members.1.prompt.query: the model has no prompt 'none'. Use one of query, "
        "document, passage, web",
    ):
        shown(tmp_path, *recipe)


def test_an_api_s_prompts_are_shown_without_tokens(tmp_path):
    api = {"base_url": "http://localhost", "model": "m", "dims": 8, "prompts": {"query": "q: "}}
    lines = shown(tmp_path, f"teacher={{api: {json.dumps(api)}}}", stages=["teacher"])
    assert lines == {"teacher query": "'q: ' + text", "teacher passage": "text"}
