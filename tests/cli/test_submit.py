"""What `stillroom submit` prints and refuses before anything leaves this machine."""

import json
import os
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.cluster.jobs import DEFAULT_ENV_VARS
from stillroom.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPE = {
    "corpus": {
        "sources": {"own": {"format": "files", "pairs": ["data/pairs.jsonl"]}},
        "held_out": {"queries": 4, "passages": 8},
    },
    "teacher": {"base": "org/teacher", "pooling": "mean"},
    "student": {
        "base": "org/student", "pooling": "mean",
        "phases": [{"data": "pairs", "steps": 1, "global_batch": 2, "learning_rate": 1e-4}],
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe with its data; no server listens at the address of jobs."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text('{"query": "q", "positive": "p"}\n')
    (tmp_path / "mine.yaml").write_text(json.dumps(RECIPE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.delenv("STILLROOM_ROOT", raising=False)
    monkeypatch.setenv("MY_API_KEY", "hush")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return tmp_path


def submit(*words, root="s3://bucket/runs"):
    """Runs `stillroom submit`; returns its output, or raises its error."""
    root_override = [] if root is None else [f"root={root}"]
    done = CliRunner().invoke(app, ["submit", "mine.yaml", *root_override, *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_a_dry_run_reports_the_files_and_the_command_that_would_send_them(folder):
    report = json.loads(submit("seed=3", "--until", "teacher", "--dry-run", "--json"))
    assert (report["files"], report["job"], report["status"]) == (2, None, None)
    words = shlex.split(report["command"])
    assert words[1:6] == ["ray", "job", "submit", "--address", "http://127.0.0.1:1"]
    assert words[words.index("--") + 1 :] == [
        "python", "-m", "stillroom.cli", "run", "mine.yaml", "root=s3://bucket/runs", "seed=3",
        "--until", "teacher",
    ]  # fmt: skip
    environment = json.loads(words[words.index("--runtime-env-json") + 1])
    [package] = map(Path, environment["py_modules"])
    assert (package / "cli" / "submit.py").is_file()


def test_the_address_option_overrides_the_one_in_the_environment(folder):
    report = json.loads(submit("--address", "http://10.0.0.1:8265", "--dry-run", "--json"))
    assert "RAY_API_SERVER_ADDRESS=http://10.0.0.1:8265 ray job submit" in report["command"]


def test_a_submit_from_a_checkout_sends_the_checkout(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(
        app, ["submit", "jobs/recipes/quickstart.yaml", "root=/shared", "--dry-run", "--json"]
    )
    words = shlex.split(json.loads(done.stdout)["command"])
    assert words[words.index("--runtime-env") + 1] == "jobs/runtime_env.yaml"
    variables = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())["env_vars"]
    assert variables == {"PYTHONPATH": "platform", **DEFAULT_ENV_VARS}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seeed=3"], "seeed: is not a field of a recipe"),
        (["student.phases.0.steps=-1"], "student.phases.0.steps: -1 is not valid"),
        (["--until", "nowhere"], "--until: 'nowhere' is not a stage"),
        (["teacher.api.base_url=https://me:hush@host/v1"], "teacher.api.base_url: holds a secret"),
        (["teacher.prompts.query='${oc.env:MY_API_KEY}'"], "teacher.prompts.query: holds a secret"),
        (["--runtime-env", "none.yaml"], "none.yaml: is no runtime environment"),
        (["--working-dir", "data"], "mine.yaml: is not among the files of .*/data"),
        (
            ["--address", "127.0.0.1:6379"],
            "--address 127.0.0.1:6379: is not the address of a job server",
        ),
        ([], "--address http://127.0.0.1:1: no job server answers"),
    ],
)
def test_errors_are_raised_before_anything_is_sent(folder, words, expected):
    with pytest.raises(UserError, match=expected) as error:
        submit(*words)
    assert error.value.code == 2
    assert "hush" not in str(error.value)


def test_a_root_within_the_working_directory_of_the_job_is_refused(folder, monkeypatch):
    with pytest.raises(UserError, match="root: 'runs' is in the job's working directory"):
        submit("--dry-run", root=None)
    with pytest.raises(UserError, match="root: 'mine' is in the job's working directory"):
        submit("--dry-run", root="mine")
    monkeypatch.setenv("STILLROOM_ROOT", "/shared/runs")
    assert "root=/shared/runs" in submit("--dry-run", root=None)


def test_a_job_submitted_by_hand_with_such_a_root_is_refused_too(folder, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    done = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert "is in the job's working directory" in str(done.exception)


def test_the_error_names_data_that_would_not_be_sent(folder):
    (folder / ".gitignore").write_text("data/\n")
    with pytest.raises(UserError, match=r"data/pairs\.jsonl: is not among the files"):
        submit("--dry-run")


def test_a_folder_too_large_to_send_is_refused_and_its_largest_part_named(folder):
    (folder / ".venv").mkdir()
    (folder / "films").mkdir()
    for large in (".venv/lib.so", "films/a.bin"):
        with (folder / large).open("wb") as file:
            file.truncate(600 << 20)  # sparse: it takes no space itself
    with pytest.raises(UserError, match=r"holds 600 MiB .* most of it is films/ 600 MiB\."):
        submit("--dry-run")
    (folder / ".rayignore").write_text("films/\n")
    assert "3 files" in submit("--dry-run")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "db_password", "AWS_SECRET"])
def test_a_secret_in_a_runtime_environment_is_refused_and_not_repeated(folder, name):
    (folder / "env.yaml").write_text(yaml.dump({"env_vars": {name: "sk-1"}}))
    with pytest.raises(
        UserError, match=f"env.yaml: env_vars.{name}: everybody who may list"
    ) as error:
        submit("--runtime-env", "env.yaml", "--dry-run")
    assert "sk-1" not in str(error.value)
    path = {f"{name}_FILE": "/run/secrets/one", "TOKENIZERS_PARALLELISM": "false", "N": 1}
    (folder / "env.yaml").write_text(yaml.dump({"env_vars": path}))
    assert "--runtime-env env.yaml" in submit("--runtime-env", "env.yaml", "--dry-run")


def test_every_job_names_its_own_command_and_is_short():
    for script in (ROOT / "jobs").glob("*.py"):
        lines = script.read_text().splitlines()
        assert len(lines) <= 25
        assert f"python jobs/{script.name} jobs/recipes/quickstart.yaml" in "\n".join(lines[:8])
    assert os.listdir(ROOT / "jobs")
