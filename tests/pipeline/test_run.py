"""The whole path on tiny real models, two workers: made, found again, killed and resumed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

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
STEPS = 20
COMMAND = [
    "run", TINY, f"teacher.phases.0.steps={STEPS}", "scale.teacher.checkpoint_every=2",
    "student.space=teacher", "release.asymmetric_retention=0", "scale.student.workers=1",
]  # fmt: skip
# A floor that no student reaches, and an export.
OTHER_RELEASE = ["release.ndcg_by_set.held-out=0.999", "release.exports=[onnx-int8]"]


# Messages of libraries about which a user can do nothing, or which repeat ours.
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
    """The environment without what conftest.py sets against DeepSpeed's warning."""
    return {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}


class Workplace:
    """A folder to run commands in.

    `start` runs one in a process of its own, which whatever starts Ray needs; `run` in this one.
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

    def shown(self, *words):
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
def place(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def killed(place):
    """Runs the command, and kills it once its teacher's first checkpoint is whole."""
    with (place.folder / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stillroom.cli", *map(str, COMMAND)],
            cwd=place.folder, start_new_session=True, stdout=output, stderr=output,
            env=user_environment(),
        )  # fmt: skip
    deadline = time.monotonic() + 180
    # Written when every worker has handed its part of a checkpoint in.
    while not list(place.folder.glob("runs/.train/*/*/1-of-2.json")):
        assert process.poll() is None, (place.folder / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polls for a condition, with a deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return [artifact.stage for artifact in place.store().list_artifacts()], place.shown()["runs"][0]


@pytest.fixture(scope="module")
def resumed(killed, place):
    """The same command once more, to its end."""
    done = place.start(*COMMAND, "--json", STILLROOM_LOGS="json")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def made(resumed):
    return json.loads(resumed.stdout)


@pytest.mark.promise("resume")
@pytest.mark.promise("pipeline")
def test_a_killed_run_leaves_nothing_half_made_and_the_next_goes_on(killed, resumed, made, place):
    stages, dead = killed
    assert stages == ["corpus"]
    assert [one["outcome"] for one in dead["stages"]] == ["made", dead["outcome"]]
    assert dead["outcome"] in ("running", "killed"), "as yet nobody can tell"
    # Up to the next stage, where Ray's C++ prints a line that is not JSON.
    lines = itertools.takewhile(
        lambda line: "vectors/tiny" not in line, resumed.stderr.splitlines()
    )
    lines = [json.loads(line) for line in lines]
    [resuming] = [line for line in lines if line["message"].startswith("resumes after step")]
    told = place.shown(resuming["run"])
    assert told["outcome"] == "done"
    corpus, teacher = told["stages"][:2]
    assert (corpus["outcome"], teacher["outcome"]) == ("reused", "made")
    assert resuming["message"] == f"resumes after step {teacher['resumed_after']}, on 2 workers"
    assert (resuming["stage"], resuming["rank"]) == (teacher["ref"], 0)
    assert {line["run"] for line in lines if "run" in line} == {told["run"]}
    assert len(place.losses("teacher")) == STEPS


def test_no_output_of_a_run_has_a_library_s_message_that_a_user_can_do_nothing_about(
    killed, resumed, place
):
    logs = [*place.folder.glob("runs/.runs/*/log.jsonl")]
    assert len(logs) == 2
    outputs = {"resumed": resumed.stderr} | {
        str(file): file.read_text() for file in [place.folder / "output", *logs]
    }
    for name, output in outputs.items():
        assert output
        noise = [message for message in LIBRARY_MESSAGES if message in output]
        assert not noise, (name, noise)


@pytest.mark.full
@pytest.mark.promise("resume")
def test_a_resumed_run_gives_the_artifacts_of_one_that_was_left_alone(made, place, tmp_path):
    alone = Workplace(tmp_path)
    done = alone.start(*COMMAND, "--json")
    artifacts = json.loads(done.stdout)["artifacts"]
    assert list(artifacts) == STAGES
    assert not any(entry["reused"] for entry in artifacts.values())
    assert [entry["key"] for entry in artifacts.values()] == [
        entry["key"] for entry in made["artifacts"].values()
    ]
    for stage in ("teacher", "student"):
        assert alone.losses(stage) == pytest.approx(place.losses(stage), rel=1e-4)


def test_one_command_makes_every_artifact_and_says_where(made, place):
    assert list(made["artifacts"]) == STAGES
    assert made["release"] == made["artifacts"]["release"]["ref"]
    assert made["gate"] == {"passed": True, "failures": []}
    reused = [stage for stage, entry in made["artifacts"].items() if entry["reused"]]
    assert reused == ["corpus"], "which the killed run had made"
    assert "held-out" in Path(made["report"]).read_text()
    report = json.loads((Path(made["report"]).parent / "report.json").read_text())
    roles = {model["role"] for model in report["models"].values()}
    assert roles == {"teacher", "student", "teacher_base", "student_base", "bm25", "asymmetric"}
    assert report["sets"] == {"held-out": {"queries": 32, "passages": 96}}
    student = report["models"]["student"]
    whole, *smaller = student["vectors"]["held-out"]
    assert whole["ndcg@10"] == student["scores"]["held-out"]["ndcg@10"]
    assert [one["precision"] for one in smaller] == [
        "float16",
        "int8",
        "binary",
        "binary+rescoring",
    ]
    released = read_calibrations(place.artifact("release").path / "student")
    assert list(released) == [student["dims"]]
    carried = PlaygroundCorpus.read(place.artifact("release").path / "playground" / "held-out")
    assert len(carried.texts) == 96
    for name, shown in carried.encoders.items():
        encoder = load_encoder(place.artifact(name).path)
        vectors = encoder.encode(carried.texts[:4], "passage")
        np.testing.assert_allclose(shown.vectors[:4], vectors, atol=1e-3)
    [both] = [model for model in report["models"].values() if model["role"] == "asymmetric"]
    teacher = report["models"]["teacher"]["scores"]["held-out"]["ndcg@10"]
    assert both["retention"]["mean"] == both["scores"]["held-out"]["ndcg@10"] / teacher
    assert not list((place.folder / "runs").glob(".train/*")), "checkpoints are left behind"


@pytest.mark.promise("pipeline")
def test_a_second_run_does_nothing_and_says_so(made, place):
    done = place.run(*COMMAND)
    assert "Nothing to do: every artifact exists." in done.stdout
    again = json.loads(place.run(*COMMAND, "--json").stdout)
    assert all(entry["reused"] for entry in again["artifacts"].values())
    assert again["release"] == made["release"]


def test_a_run_tells_what_happened_when_and_where_its_time_went(made, place):
    ref = made["artifacts"]["student"]["ref"]
    done = place.run("runs", "show", ref, "--json", "--svg", "run.svg")
    told = json.loads(done.stdout)
    assert told["run"] == made["artifacts"]["student"]["run"]
    assert (told["outcome"], told["recipe"], told["error"]) == ("done", "tiny", None)
    stages = told["stages"]
    assert [one["ref"] for one in stages] == [one["ref"] for one in made["artifacts"].values()]
    assert [one["outcome"] for one in stages] == ["reused", *["made"] * 6]
    for before, after in itertools.pairwise(stages[1:]):
        assert before["began"] < before["ended"] <= after["began"]
    assert told["began"] < stages[1]["began"] and stages[-1]["ended"] <= told["ended"]
    within = sum(one["seconds"] for one in stages)
    assert within + told["between"] == pytest.approx(told["seconds"], abs=0.01)
    workers = {one["ref"].partition("/")[0]: one["workers"] for one in stages if one["workers"]}
    assert workers == {"teacher": 2, "student": 1}
    assert all(0.01 < one["memory_gib"] < 24 for one in stages[1:])
    lines = [json.loads(line) for line in Path(told["log"]).read_text().splitlines()]
    assert {line["run"] for line in lines} == {told["run"]}
    named = {line["stage"] for line in lines if "stage" in line}
    assert named == {one["ref"] for one in stages[1:]}
    assert not [line for line in lines if "Autoscaler status" in line["message"]]
    for last in (f"step {STEPS}/{STEPS}", "step 6/6"):  # of teacher and student
        [end] = [line for line in lines if last in line["message"]]
        assert end["worker"]
    drawn = (place.folder / "run.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and drawn.count('class="made"') == 6
    shown = place.run("runs", "show", told["run"]).stdout
    assert "█" in shown and "between stages" in shown and told["log"] in shown
    listed = json.loads(place.run("runs", "show", "--json").stdout)["runs"]
    assert [one["run"] for one in listed][-2] == told["run"], "all but the first, which was killed"


def test_training_moved_the_weights_and_the_loss(made, place):
    assert (len(place.losses("teacher")), len(place.losses("student"))) == (STEPS, 6)
    encoder = load_encoder(place.artifact("teacher").path)
    base = Contract.read(place.artifact("teacher").path).base
    assert base == "random:llama"
    assert encoder.contract.attention == "bidirectional"


@pytest.mark.promise("vectors")
def test_stored_vectors_are_those_of_the_teacher(made, place):
    corpus = CorpusData.read(place.artifact("corpus"))
    teacher = load_encoder(place.artifact("teacher").path)
    folder = place.artifact("vectors").path
    queries, passages = StoredVectors(folder / "queries"), StoredVectors(folder / "passages")
    rows = np.arange(0, len(corpus.passages), 7)
    expected = teacher.encode([corpus.passages[row] for row in rows], "passage")
    np.testing.assert_allclose(passages[rows].astype(np.float32), expected, atol=1e-3)
    expected = teacher.encode(corpus.queries[:9], "query")
    np.testing.assert_allclose(queries[np.arange(9)].astype(np.float32), expected, atol=1e-3)


@pytest.mark.promise("mining")
def test_no_negative_is_the_positive_or_a_passage_that_is_tested(made, place):
    artifact = place.artifact("corpus")
    corpus = CorpusData.read(artifact)
    negatives = np.load(place.artifact("negatives").path / "negatives.npy")
    assert (negatives >= 0).any()
    tested = {
        text_key(text)
        for kept in read_evaluation_sets(artifact).values()
        for text in kept.passages.values()
    }
    for own, row in zip(corpus.positive_rows, negatives, strict=True):
        assert own not in row
        assert not {text_key(corpus.passages[i]) for i in row if i >= 0} & tested


@pytest.fixture(scope="module")
def refused(made, place):
    """The run of another release, which fails its gate; and how many releases there are then."""
    done = place.start(*COMMAND, *OTHER_RELEASE)
    return done, len(place.store().list_artifacts("release"))


@pytest.fixture(scope="module")
def changed(refused, place):
    """The same once more, released all the same."""
    done = place.start(*COMMAND, *OTHER_RELEASE, "--no-gate", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_failed_gate_says_by_how_much_and_leaves_no_release(refused, changed, place):
    done, releases = refused
    assert done.returncode == 1
    assert "the gate failed" in done.stderr and "below the floor of 0.999" in done.stderr
    assert releases == 1, "the one before"
    assert changed["gate"]["passed"] is False
    content = json.loads((place.artifact("release").path / "release.json").read_text())
    assert content["gate"]["overridden"] is True


@pytest.mark.promise("pipeline")
def test_changing_the_release_makes_no_other_artifact_anew(made, changed, place):
    first, second = made["artifacts"], changed["artifacts"]
    same = [stage for stage in STAGES if first[stage]["ref"] == second[stage]["ref"]]
    assert same == STAGES[:-1]
    assert [stage for stage in STAGES if not second[stage]["reused"]] == ["release"]
    counts = Counter(artifact.stage for artifact in place.store().list_artifacts())
    assert counts == {stage: 1 if stage in same else 2 for stage in STAGES}


def test_a_release_holds_checked_exports_and_a_card_beside_every_model(changed, place):
    release = place.artifact("release").path
    told = json.loads((release / "release.json").read_text())["exports"]["onnx-int8"]
    assert told["texts"] == 128 and told["cosine"]["min"] >= 0.99
    assert set(told["ndcg@10"]) == {"held-out"}
    encoder, exported = load_encoder(release / "student"), ExportedEncoder(release / told["folder"])
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


def test_a_model_is_evaluated_and_encodes_by_its_artifact_s_name(made, place):
    data = place.artifact("corpus").path / "evaluation"
    words = ["--dims", "16", "--html", "page.html", "--json", "-"]
    done = place.run("evaluate", "student/tiny", "--data", data, *words)
    [scores] = json.loads(done.stdout)["models"].values()
    assert {one["dims"] for one in scores["vectors"]["held-out"]} == {64, 16}
    assert "<circle" in (place.folder / "page.html").read_text()
    assert set(scores["scores"]["held-out"]) == {"ndcg@10", "recall@100", "mrr@10"}
    done = place.run("encode", "student/tiny", "--query", stdin="one\ntwo\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    student = load_encoder(place.artifact("student").path)
    expected = student.encode(["one", "two"], "query")
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-6)


@pytest.mark.full
@pytest.mark.promise("pipeline")
def test_changing_the_student_makes_only_what_depends_on_it(made, changed, place):
    done = place.start(*COMMAND, "student.phases.0.steps=5", "--json")
    again = json.loads(done.stdout)["artifacts"]
    remade = [stage for stage in STAGES if not again[stage]["reused"]]
    assert remade == ["student", "report", "release"]
