"""The whole pipeline on tiny real models and two workers: run, reused, killed and resumed."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
import yaml
from safetensors.torch import load_file

from stillroom.data.cleaning.text_keys import text_key
from stillroom.encoders.contract import Contract
from stillroom.encoders.export.runtimes import ExportedEncoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.vectors.quantise import read_calibrations
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.release.playground_corpus import PlaygroundCorpus
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets
from stillroom.storage.artifacts import Store
from support.in_process_cli import run_command

ROOT = Path(__file__).parents[2]
TINY = ROOT / "jobs" / "recipes" / "tiny.yaml"
STAGES = ["corpus", "teacher", "vectors", "negatives", "student", "report", "release"]


# More steps than the recipe has, so that a run can be killed between two checkpoints.
STEPS = 12
COMMAND = [
    "run", TINY, f"teacher.phases.0.steps={STEPS}", "scale.teacher.checkpoint_every=2",
    "student.space=teacher", "release.asymmetric_retention=0", "scale.student.workers=1",
]  # fmt: skip
# A floor that no student reaches, and an export.
OTHER_RELEASE = ["release.ndcg_by_set.held-out=0.999", "release.exports=[onnx-int8]"]


# Messages of libraries that users can do nothing about, or that repeat our own.
LIBRARY_MESSAGES = [
    "PreemptionWatcher",
    "PlacementGroupCleaner",
    "Requesting resources",
    "Setting up process group",
    "built successfully",
    "Setting accelerator to CPU",
    "is_gradient_checkpointing",
    "Progress bars disabled",
    "Starting execution of Dataset",
    "Execution plan of Dataset",
    "Full logs are in",
    "execution finished in",
    "Connecting to existing Serve app",
    "Writing model shards",
    "TOKENIZERS_PARALLELISM",
    "FutureWarning",
]


def user_environment():
    """This environment without the variable that conftest.py sets against a DeepSpeed warning."""
    return {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}


class Workplace:
    """A folder to run commands in.

    `start` runs one in a separate process, which commands that start Ray need; `run` in this one.
    """

    def __init__(self, folder):
        self.folder = folder

    def start(self, *words, **env):
        return subprocess.run(
            [sys.executable, "-m", "stillroom.cli", *map(str, words)],
            capture_output=True, text=True, cwd=self.folder, env={**user_environment(), **env},
        )  # fmt: skip

    def run(self, *words, stdin=""):
        return run_command(*words, cwd=self.folder, stdin=stdin)

    def show_runs(self, *words):
        return json.loads(self.run("runs", "show", *words, "--json").stdout)

    def store(self):
        return Store(str(self.folder / "runs"))

    def artifact(self, stage):
        return self.store().find(f"{stage}/tiny")

    def losses(self, stage):
        lines = (self.artifact(stage).path / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        assert [step["step"] for step in steps] == [*range(1, len(steps) + 1)]
        return [step["loss"] for step in steps]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(workplace):
    """The command, run to its end."""
    done = workplace.start(*COMMAND, "--json", STILLROOM_LOGS="json")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def result(finished):
    return json.loads(finished.stdout)


def test_a_run_s_output_has_no_library_messages_that_users_can_do_nothing_about(
    finished, workplace
):
    logs = [*workplace.folder.glob("runs/.runs/*/log.jsonl")]
    assert logs
    outputs = {"stderr": finished.stderr} | {str(file): file.read_text() for file in logs}
    for name, output in outputs.items():
        assert output
        noise = [message for message in LIBRARY_MESSAGES if message in output]
        assert not noise, (name, noise)


def test_one_command_makes_every_artifact_and_reports_where_it_is(result, workplace):
    assert list(result["artifacts"]) == STAGES
    assert result["release"] == result["artifacts"]["release"]["ref"]
    assert result["gate"] == {"passed": True, "failures": []}
    assert not any(entry["reused"] for entry in result["artifacts"].values())
    assert "held-out" in Path(result["report"]).read_text()
    report = json.loads((Path(result["report"]).parent / "report.json").read_text())
    roles = {model["role"] for model in report["models"].values()}
    assert roles == {
        "teacher", "student", "teacher_base", "student_base", "base", "bm25", "asymmetric",
        "asymmetric_base",
    }  # fmt: skip
    assert report["sets"] == {"held-out": {"queries": 32, "passages": 96}}
    student = report["models"]["student"]
    full_size, *smaller = student["vectors"]["held-out"]
    assert full_size["ndcg@10"] == student["scores"]["held-out"]["ndcg@10"]
    assert [vectors["precision"] for vectors in smaller] == [
        "float16",
        "int8",
        "binary",
        "binary+rescoring",
    ]
    calibrations = read_calibrations(workplace.artifact("release").path / "student")
    assert list(calibrations) == [student["dims"]]
    playground = PlaygroundCorpus.read(
        workplace.artifact("release").path / "playground" / "held-out"
    )
    assert len(playground.texts) == 96
    for name, sample in playground.encoders.items():
        encoder = load_encoder(workplace.artifact(name).path)
        vectors = encoder.encode(playground.texts[:4], "passage")
        np.testing.assert_allclose(sample.vectors[:4], vectors, atol=1e-3)
    [asymmetric] = [model for model in report["models"].values() if model["role"] == "asymmetric"]
    teacher = report["models"]["teacher"]["scores"]["held-out"]["ndcg@10"]
    assert asymmetric["retention"]["mean"] == asymmetric["scores"]["held-out"]["ndcg@10"] / teacher
    assert not list((workplace.folder / "runs").glob(".train/*")), "checkpoints are left"


@pytest.mark.promise("pipeline")
def test_a_second_run_does_nothing_and_says_so(result, workplace):
    done = workplace.run(*COMMAND)
    assert "Nothing to do: every artifact exists." in done.stdout
    second = json.loads(workplace.run(*COMMAND, "--json").stdout)
    assert all(entry["reused"] for entry in second["artifacts"].values())
    assert second["release"] == result["release"]


def test_runs_show_reports_the_outcome_and_the_time_of_every_stage(result, workplace):
    ref = result["artifacts"]["student"]["ref"]
    done = workplace.run("runs", "show", ref, "--json", "--svg", "run.svg")
    report = json.loads(done.stdout)
    assert report["run"] == result["artifacts"]["student"]["run"]
    assert (report["outcome"], report["recipe"], report["error"]) == ("done", "tiny", None)
    stages = report["stages"]
    assert [stage["ref"] for stage in stages] == [
        artifact["ref"] for artifact in result["artifacts"].values()
    ]
    assert [stage["outcome"] for stage in stages] == ["made"] * 7
    for before, after in itertools.pairwise(stages):
        assert before["began"] < before["ended"] <= after["began"]
    assert report["began"] < stages[0]["began"] and stages[-1]["ended"] <= report["ended"]
    in_stages = sum(stage["seconds"] for stage in stages)
    assert in_stages + report["between"] == pytest.approx(report["seconds"], abs=0.01)
    workers = {
        stage["ref"].partition("/")[0]: stage["workers"] for stage in stages if stage["workers"]
    }
    assert workers == {"teacher": 2, "student": 1}
    assert all(0.01 < stage["memory_gib"] < 24 for stage in stages[1:])
    lines = [json.loads(line) for line in Path(report["log"]).read_text().splitlines()]
    assert {line["run"] for line in lines} == {report["run"]}
    logged_stages = {line["stage"] for line in lines if "stage" in line}
    assert logged_stages == {stage["ref"] for stage in stages}
    assert not [line for line in lines if "Autoscaler status" in line["message"]]
    for last_step in (f"step {STEPS}/{STEPS}", "step 6/6"):  # of teacher and student
        [last_line] = [line for line in lines if last_step in line["message"]]
        assert last_line["worker"]
    svg = (workplace.folder / "run.svg").read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg") and svg.count('class="made"') == 7
    text = workplace.run("runs", "show", report["run"]).stdout
    assert "█" in text and "between stages" in text and report["log"] in text
    listed = json.loads(workplace.run("runs", "show", "--json").stdout)["runs"]
    assert [run["run"] for run in listed][-1] == report["run"]


def test_training_gives_a_bidirectional_encoder_with_a_trained_adapter(result, workplace):
    assert (len(workplace.losses("teacher")), len(workplace.losses("student"))) == (STEPS, 6)
    folder = workplace.artifact("teacher").path
    contract = Contract.read(folder)
    assert (contract.base, contract.attention) == ("random:llama", "bidirectional")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    started_at_zero = [tensor for name, tensor in adapter.items() if "lora_B" in name]
    assert started_at_zero and all(tensor.any() for tensor in started_at_zero)


@pytest.mark.promise("vectors")
def test_stored_vectors_are_those_of_the_teacher(result, workplace):
    corpus = CorpusData.open(workplace.artifact("corpus"))
    teacher = load_encoder(workplace.artifact("teacher").path)
    folder = workplace.artifact("vectors").path
    queries, passages = StoredVectors(folder / "queries"), StoredVectors(folder / "passages")
    rows = np.arange(0, len(corpus.passages), 7)
    expected = teacher.encode([corpus.passages[row] for row in rows], "passage")
    np.testing.assert_allclose(passages[rows].astype(np.float32), expected, atol=1e-3)
    expected = teacher.encode(corpus.queries[:9], "query")
    np.testing.assert_allclose(queries[np.arange(9)].astype(np.float32), expected, atol=1e-3)


@pytest.mark.promise("mining")
def test_no_negative_is_the_positive_or_an_evaluation_passage(result, workplace):
    artifact = workplace.artifact("corpus")
    corpus = CorpusData.open(artifact)
    negatives = np.load(workplace.artifact("negatives").path / "negatives.npy")
    assert (negatives >= 0).any()
    evaluation_keys = {
        text_key(text)
        for evaluation_set in read_evaluation_sets(artifact).values()
        for text in evaluation_set.passages.values()
    }
    for positive, row in zip(corpus.positive_rows, negatives, strict=True):
        assert positive not in row
        assert not {text_key(corpus.passages[i]) for i in row if i >= 0} & evaluation_keys


@pytest.fixture(scope="module")
def refused(result, workplace):
    """A run with another release, which fails the gate; and the number of releases after it."""
    done = workplace.start(*COMMAND, *OTHER_RELEASE)
    return done, len(workplace.store().list_artifacts("release"))


@pytest.fixture(scope="module")
def changed(refused, workplace):
    """The same run, which releases in spite of the gate."""
    done = workplace.start(*COMMAND, *OTHER_RELEASE, "--no-gate", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_failed_gate_reports_the_shortfall_and_leaves_no_release(refused, changed, workplace):
    done, releases = refused
    assert done.returncode == 1
    assert "the gate failed" in done.stderr and "below the floor of 0.999" in done.stderr
    assert releases == 1, "only the earlier one"
    assert changed["gate"]["passed"] is False
    content = json.loads((workplace.artifact("release").path / "release.json").read_text())
    assert content["gate"]["overridden"] is True


@pytest.mark.promise("pipeline")
def test_changing_the_release_remakes_no_other_artifact(result, changed, workplace):
    first, second = result["artifacts"], changed["artifacts"]
    same = [stage for stage in STAGES if first[stage]["ref"] == second[stage]["ref"]]
    assert same == STAGES[:-1]
    assert [stage for stage in STAGES if not second[stage]["reused"]] == ["release"]
    counts = Counter(artifact.stage for artifact in workplace.store().list_artifacts())
    assert counts == {stage: 1 if stage in same else 2 for stage in STAGES}


def test_a_release_holds_checked_exports_and_a_card_beside_every_model(changed, workplace):
    release = workplace.artifact("release").path
    export = json.loads((release / "release.json").read_text())["exports"]["onnx-int8"]
    assert export["texts"] == 128 and export["cosine"]["min"] >= 0.99
    assert set(export["ndcg@10"]) == {"held-out"}
    encoder = load_encoder(release / "student")
    exported = ExportedEncoder(release / export["folder"])
    expected = encoder.encode(["one text"], "query")
    assert (exported.encode(["one text"], "query") * expected).sum() > 0.99
    for model, words in {
        "teacher": ["teacher/tiny-", "objective: contrastive", "tiny/teacher"],
        "student": ["student/tiny-", "teacher/tiny-", "distillation", "SentenceTransformer("],
        "student/onnx-int8": ["student/tiny-", "Against the original", "128 texts"],
    }.items():
        card = (release / model / "README.md").read_text()
        _, front, text = card.split("---\n", 2)
        assert yaml.safe_load(front)["pipeline_tag"] == "sentence-similarity"
        for word in [*words, "docstrings", "| held-out |", "BM25", "## Limits"]:
            assert word in text or word in front, (model, word)


def test_a_model_is_evaluated_and_encodes_by_its_artifact_s_name(result, workplace):
    data = workplace.artifact("corpus").path / "evaluation"
    words = ["--dims", "16", "--html", "page.html", "--json", "-"]
    done = workplace.run("evaluate", "student/tiny", "--data", data, *words)
    [scores] = json.loads(done.stdout)["models"].values()
    assert {vectors["dims"] for vectors in scores["vectors"]["held-out"]} == {64, 16}
    assert "<circle" in (workplace.folder / "page.html").read_text()
    assert set(scores["scores"]["held-out"]) == {"ndcg@10", "recall@100", "mrr@10"}
    done = workplace.run("encode", "student/tiny", "--query", stdin="one\ntwo\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    student = load_encoder(workplace.artifact("student").path)
    expected = student.encode(["one", "two"], "query")
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-6)


@pytest.fixture(scope="module")
def place_of_kill(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def killed(place_of_kill):
    """Runs the command and kills it once its teacher's first checkpoint is complete."""
    with (place_of_kill.folder / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stillroom.cli", *map(str, COMMAND)],
            cwd=place_of_kill.folder, start_new_session=True, stdout=output, stderr=output,
            env=user_environment(),
        )  # fmt: skip
    deadline = time.monotonic() + 180
    # Written when every worker has saved its part of a checkpoint.
    while not list(place_of_kill.folder.glob("runs/.train/*/*/1-of-2.json")):
        assert process.poll() is None, (place_of_kill.folder / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polls for a condition, with a deadline
    # Ray's processes too, as when the machine dies: alone, its workers would train on for seconds.
    for running in [process, *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            running.kill()
    process.wait()
    stages = [artifact.stage for artifact in place_of_kill.store().list_artifacts()]
    return stages, place_of_kill.show_runs()["runs"][0]


@pytest.fixture(scope="module")
def resumed(killed, place_of_kill):
    """The same command again, run to its end."""
    done = place_of_kill.start(*COMMAND, "--json", STILLROOM_LOGS="json")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.full
@pytest.mark.promise("resume")
@pytest.mark.promise("pipeline")
def test_a_killed_run_leaves_no_partial_artifact_and_the_next_run_resumes_it(
    killed, resumed, place_of_kill
):
    stages, killed_run = killed
    assert stages == ["corpus"]
    assert [stage["outcome"] for stage in killed_run["stages"]] == ["made", killed_run["outcome"]]
    assert killed_run["outcome"] in ("running", "killed"), "it cannot be known yet"
    # Lines before the next stage, in which Ray's C++ code prints a line that is not JSON.
    lines = itertools.takewhile(
        lambda line: "vectors/tiny" not in line, resumed.stderr.splitlines()
    )
    lines = [json.loads(line) for line in lines]
    [resume_line] = [line for line in lines if line["message"].startswith("resumes after step")]
    run = place_of_kill.show_runs(resume_line["run"])
    assert run["outcome"] == "done"
    corpus, teacher = run["stages"][:2]
    assert (corpus["outcome"], teacher["outcome"]) == ("reused", "made")
    assert resume_line["message"] == f"resumes after step {teacher['resumed_after']}, on 2 workers"
    assert (resume_line["stage"], resume_line["rank"]) == (teacher["ref"], 0)
    assert {line["run"] for line in lines if "run" in line} == {run["run"]}
    assert len(place_of_kill.losses("teacher")) == STEPS


@pytest.mark.full
@pytest.mark.promise("resume")
def test_a_resumed_run_makes_the_artifacts_of_an_uninterrupted_one(
    result, resumed, workplace, place_of_kill
):
    artifacts = json.loads(resumed.stdout)["artifacts"]
    assert [stage for stage, entry in artifacts.items() if entry["reused"]] == ["corpus"]
    assert [entry["key"] for entry in artifacts.values()] == [
        entry["key"] for entry in result["artifacts"].values()
    ]
    for stage in ("teacher", "student"):
        assert place_of_kill.losses(stage) == pytest.approx(workplace.losses(stage), rel=1e-4)


@pytest.mark.full
@pytest.mark.promise("pipeline")
def test_changing_the_student_remakes_only_what_depends_on_it(result, changed, workplace):
    # The last test: a newer student has other losses.
    done = workplace.start(*COMMAND, "student.phases.0.steps=5", "--json")
    artifacts = json.loads(done.stdout)["artifacts"]
    remade = [stage for stage in STAGES if not artifacts[stage]["reused"]]
    assert remade == ["student", "report", "release"]
