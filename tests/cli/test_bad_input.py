"""Wrong usage and input are explained in one line, before anything expensive, with exit code 2."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file, save_file

from stillroom import cli
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from support import shared_ray
from support.in_process_cli import run_command
from support.make_encoder import make_encoder
from support.tiny_models import tiny_encoder

TINY = Path(__file__).parents[2] / "jobs" / "recipes" / "tiny.yaml"
EVALUATION = {
    "corpus.jsonl": '{"_id": "p", "text": "an answer"}\n',
    "queries.jsonl": '{"_id": "q", "text": "a question"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq\tp\t1\n",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture
def stillroom(tmp_path):
    def run(*words, env=None, stdin=""):
        return run_command(*words, cwd=tmp_path, env=env, stdin=stdin)

    return run


def refused(done, *expected):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for words in expected:
        assert words in done.stderr
    return True


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.base=/nowhere/at/all", "/nowhere/at/all: there is no such folder"),
        ("student.base=package:no_such_package/model", "pip install no-such-package"),
        ("student.phases.0.learning_rat=1e-4", "Did you mean 'learning_rate'"),
        (
            "student.phases.0.learning_rate=-1e-4",
            "student.phases.0.learning_rate: -0.0001 is not valid",
        ),
        ("student.phases.0.steps=many", "student.phases.0.steps: 'many' is not valid"),
        ("student.phases.0.global_batch=15", "must be a multiple of the number of workers"),
        (
            "corpus.sources.environment.packages=[no-such-package]",
            "corpus.sources.environment.packages: no-such-package: is not installed",
        ),
        ("corpus.sources.environment.package=[numpy]", "Did you mean 'packages'"),
        (
            "student.phases.0.mix={other: 1}",
            "student.phases[0].mix names 'other', which is not a source",
        ),
        ("corpus.held_out=null", "nothing can be measured"),
        ("student.pooling=null", "Set student.pooling"),
        ("root=s3x://bucket/x", "root: s3x://bucket/x"),
        ("nonsense", "nonsense: is not an override"),
    ],
)
def test_a_wrong_recipe_is_refused(stillroom, tmp_path, override, expected):
    assert refused(stillroom("run", TINY, override), expected)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("pairs", '{"query": "q", "positive": "p"}\n{"query"\n', "own.jsonl:2: is not JSON"),
        ("pairs", "", "own.jsonl: is empty"),
        (
            "pairs",
            '{"query": "q", "passage": "p", "label": 0}\n',
            "own.jsonl:1: has a score in 'label', and no minimum score is set. Set min_score",
        ),
        ("pairs", '{"query": "q", "positive": ""}\n', "own.jsonl:1: 'positive' is empty"),
        ("passages", '{"title": "t"}\n', "own.jsonl:1: has no 'passage'"),
        ("conversations", '{"text": ["Hi"]}\n', "own.jsonl:1: 'text' has no assistant's turn"),
    ],
)
def test_a_broken_corpus_is_refused_with_file_and_line(
    stillroom, tmp_path, kind, content, expected
):
    (tmp_path / "own.jsonl").write_text(content)
    source = f'corpus.sources.own={{"format": "files", "{kind}": ["{tmp_path}/own.jsonl"]}}'
    assert refused(stillroom("check", TINY, source), expected)


def test_provided_negatives_are_refused_where_no_pair_has_any(stillroom, tmp_path):
    pairs = tmp_path / "own.jsonl"
    pairs.write_text('{"query": "q", "positive": "p"}\n')
    words = [
        f'corpus.sources.own={{"format": "files", "pairs": ["{pairs}"]}}',
        "teacher.phases.0.negatives=given",
        "teacher.phases.0.hard_negatives=1",
    ]
    expected = "teacher.phases[0].negatives: given: no pair of its sources comes with negatives"
    assert refused(stillroom("check", TINY, *words), expected)
    pairs.write_text('{"query": "q", "positive": "p", "negatives": ["n"]}\n')
    assert stillroom("check", TINY, *words).returncode == 0
    only_environment = "teacher.phases.0.mix={environment: 1}"
    assert refused(stillroom("check", TINY, *words, only_environment), expected)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\tp\t0\n", "no query with a relevant"),
        ("corpus.jsonl", '{"_id": "p"}\n', "corpus.jsonl:1: has no 'text'"),
    ],
)
def test_a_broken_evaluation_set_is_refused(stillroom, tmp_path, file, content, expected):
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    for name, text in {**EVALUATION, file: content}.items():
        (tmp_path / "set" / name).write_text(text)
    override = f'corpus.evaluation={{"own": "{tmp_path}/set"}}'
    assert refused(stillroom("check", TINY, override), expected)


def test_a_base_without_a_tokenizer_is_refused(stillroom, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "bare")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert refused(
        stillroom("run", TINY, f"student.base={copy}"), "student.base", "has no tokenizer"
    )


def test_a_base_whose_weights_are_pickled_is_refused(stillroom, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "pickled")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refused(
        stillroom("run", TINY, f"student.base={copy}"),
        "student.base", "no weights in Safetensors, only pytorch_model.bin",
    )  # fmt: skip


def test_a_model_with_a_broken_weight_prints_no_vector(stillroom, model, tmp_path):
    save_encoder(make_encoder(model, precision="float32"), tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][3] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    done = stillroom("encode", str(tmp_path / "broken"), stdin="a text\n")
    assert refused(done, "model.safetensors: encoder.layer.0.output.dense.bias: holds numbers that")
    assert done.stdout == ""


def test_too_little_disk_is_refused(stillroom, model, tmp_path):
    # The run needs three times the free space.
    size = shutil.disk_usage("/dev/shm").free
    weights = shutil.copytree(model, tmp_path / "huge")
    (weights / "2_Dense").mkdir()
    with (weights / "2_Dense" / "model.safetensors").open("wb") as file:
        file.truncate(size)  # sparse: it takes no space itself
    done = stillroom("run", TINY, f"teacher.base={weights}", "root=/dev/shm/stillroom-test")
    assert refused(done, "GiB free, and the run needs about")


@pytest.mark.parametrize("command", ["run", "check"])
def test_an_unreachable_cluster_is_refused(stillroom, command):
    shared_ray.stop()  # in a process that has joined a Ray, none is looked for
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = stillroom(command, TINY, env={"RAY_ADDRESS": address})
    assert refused(done, f"RAY_ADDRESS={address}", "cannot be reached")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "no-such.yaml"], "there is no such recipe"),
        (["run", TINY, "--until", "nowhere"], "'nowhere' is not a stage"),
        (["serve", "release/none", "--port", "0"], "release/none"),
        (["serve", "/no/such/model", "--port", "0"], "/no/such/model: there is no such folder"),
        (["serve", "student/none", "--port", "0"], "student/none: is not under runs"),
        (["serve", "random:bert", "--port", "0"], "random:bert: is a plain model"),
        (["serve", "x", "--pooling", "best"], "--pooling: 'best' is unknown"),
        (["serve", "release/x", "--pooling", "mean", "--port", "0"], "--pooling: is for a plain"),
        (["serve", "x", "--host", "0.0.0.0"], "no API key is configured"),
        (["release", "create", "mine"], "names no model"),
        (["release", "create", "mine", "--student", "student/none"], "student/none: is not under"),
        (
            ["release", "create", "mine", "mean_retenton=1", "--student", "x"],
            "Did you mean 'mean_retention'",
        ),
        (
            ["release", "create", "mine", "--student", "random:bert", "--gate", "."],
            "holds no evaluation set",
        ),
        (["export", "student/none", "--format", "tar", "--out", "x"], "'tar' is unknown"),
        (["evaluate", "student/none", "--data", "."], "holds no evaluation set"),
        (["evaluate", "x", "--data", ".", "--dims", "8,many"], "'8,many' is not a list of sizes"),
        (["encode", "student/none"], "student/none: is not under runs"),
        (["serve", "x", "--port", "many"], "--port"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_a_wrong_command_line_is_refused(stillroom, words, expected):
    assert refused(stillroom(*words), expected)


def test_debug_shows_where_an_error_came_from(stillroom):
    done = stillroom("run", "no-such.yaml", "--debug")
    assert "Traceback" in done.stderr and "there is no such recipe" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["plan", TINY], 0, ""),
        (["run", "no-such.yaml"], 2, "there is no such recipe"),
        pytest.param(
            ["run", TINY, "corpus.held_out.passages=100000"],
            2,
            "leaves none to train on",
            marks=pytest.mark.full,
        ),
        (["run", TINY, "root=/dev/null/x", "--until", "corpus"], 2, "cannot be written"),
        (["no-such-command"], 2, "no-such-command"),
    ],
)
def test_a_separate_process_exits_with_the_same_codes(tmp_path, words, code, expected):
    done = subprocess.run(
        [sys.executable, "-m", "stillroom.cli", *map(str, words)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == code and expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    "command",
    [
        *(
            "init",
            "check",
            "plan",
            "run",
            "submit",
            "evaluate",
            "encode",
            "mine",
            "export",
            "serve",
        ),
        *("doctor", "data describe", "data synthesize", "data decontaminate"),
        *("runs", "runs show", "runs prune"),
        *("vectors publish", "vectors import"),
    ],
)
def test_every_command_has_help_with_an_example(stillroom, command):
    done = stillroom(*command.split(), "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_a_good_recipe_passes_the_check_and_the_plan_is_json(stillroom):
    checked = stillroom("check", TINY)
    assert checked.returncode == 0
    assert "teacher.base: random:llama: " in checked.stdout, "and no emoji"
    steps = json.loads(stillroom("plan", TINY, "--json").stdout)["steps"]
    assert [step["stage"] for step in steps] == [
        "corpus", "teacher", "vectors", "negatives", "student", "report", "release",
    ]  # fmt: skip
    assert {(step["exists"], step["why"]) for step in steps} == {(False, "not made yet")}


def test_what_a_task_of_ray_refuses_is_one_line_too(ray_cluster, stillroom, monkeypatch):
    @ray.remote
    def refuse():
        raise UserError("a file", "is broken", "Restore it")

    monkeypatch.setattr(cli, "app", lambda words: ray.get(refuse.remote()))
    done = stillroom("plan", TINY)
    assert (done.returncode, done.stderr) == (2, "error: a file: is broken. Restore it.\n")
