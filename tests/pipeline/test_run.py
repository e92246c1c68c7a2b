"""The whole path on tiny real models, two workers: made, found again, killed and resumed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from stillroom.data.cleaning.text_keys import text_key
from stillroom.encoders.contract import Contract
from stillroom.encoders.export.runtimes import Exported
from stillroom.encoders.files.load import load
from stillroom.encoders.vectors.quantise import read_calibrations
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.release.playground_corpus import Showcase
from stillroom.stages.corpus.artifact import CorpusFiles, evaluation_sets
from stillroom.storage.artifacts import Store
from support.tiny_models import tiny_decoder, tiny_encoder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "jobs" / "recipes" / "tiny.yaml"
STAGES = ["corpus", "teacher", "vectors", "negatives", "student", "report", "release"]


class Place:
    """A folder to run in, and the models there."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {
            **os.environ,
            "TINY_TEACHER": str(tiny_decoder(folder / "teacher")),
            "TINY_STUDENT": str(tiny_encoder(folder / "student")),
        }

    def command(self, *words):
        return [sys.executable, "-m", "stillroom.cli", *map(str, words)]

    def run(self, *words):
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, cwd=self.folder, env=self.env
        )

    def artifact(self, stage):
        return Store(str(self.folder / "runs")).find(f"{stage}/tiny")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def made(place):
    done = place.run("run", TINY, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_command_makes_every_artifact_and_says_where(made, place):
    assert list(made["artifacts"]) == STAGES
    assert made["release"] == made["artifacts"]["release"]["ref"]
    assert made["gate"] == {"passed": True, "failures": []}
    assert not any(entry["reused"] for entry in made["artifacts"].values())
    assert "held-out" in Path(made["report"]).read_text()
    report = json.loads((Path(made["report"]).parent / "report.json").read_text())
    roles = {model["role"] for model in report["models"].values()}
    assert roles == {"teacher", "student", "teacher_base", "student_base", "bm25"}
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
    carried = Showcase.read(place.artifact("release").path / "playground" / "held-out")
    assert len(carried.texts) == 96
    for name, shown in carried.encoders.items():
        encoder = load(place.artifact(name).path)
        vectors = encoder.encode(carried.texts[:4], "passage")
        np.testing.assert_allclose(shown.vectors[:4], vectors, atol=1e-3)
    assert not list((place.folder / "runs").glob(".train/*")), "checkpoints are left behind"


def test_a_second_run_does_nothing_and_says_so(made, place):
    done = place.run("run", TINY)
    assert "Nothing to do: every artifact exists." in done.stdout
    again = json.loads(place.run("run", TINY, "--json").stdout)
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
    assert {one["outcome"] for one in stages} == {"made"}
    for before, after in itertools.pairwise(stages):
        assert before["began"] < before["ended"] <= after["began"]
    assert told["began"] < stages[0]["began"] and stages[-1]["ended"] <= told["ended"]
    within = sum(one["seconds"] for one in stages)
    assert within + told["between"] == pytest.approx(told["seconds"], abs=0.01)
    workers = {one["ref"].partition("/")[0]: one["workers"] for one in stages if one["workers"]}
    assert workers == {"teacher": 2, "student": 2}
    assert all(0.01 < one["memory_gib"] < 24 for one in stages)
    lines = [json.loads(line) for line in Path(told["log"]).read_text().splitlines()]
    assert {line["run"] for line in lines} == {told["run"]}
    assert {line["stage"] for line in lines if "stage" in line} == {one["ref"] for one in stages}
    assert not [line for line in lines if "Autoscaler status" in line["message"]]
    ends = [line for line in lines if "step 6/6" in line["message"]]
    assert len(ends) == 2 and all(line["worker"] for line in ends), "of teacher and student"
    drawn = (place.folder / "run.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and drawn.count('class="made"') == 7
    shown = place.run("runs", "show", told["run"]).stdout
    assert "█" in shown and "in no stage" in shown and told["log"] in shown
    listed = json.loads(place.run("runs", "show", "--json").stdout)["runs"]
    assert [one["run"] for one in listed][-1] == told["run"], "the first of all"


def test_training_moved_the_weights_and_the_loss(made, place):
    for stage in ("teacher", "student"):
        lines = (place.artifact(stage).path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    encoder = load(place.artifact("teacher").path)
    base = Contract.read(place.artifact("teacher").path).base
    assert base == place.env["TINY_TEACHER"]
    assert encoder.contract.attention == "bidirectional"


def test_stored_vectors_are_those_of_the_teacher(made, place):
    corpus = CorpusFiles.read(place.artifact("corpus"))
    teacher = load(place.artifact("teacher").path)
    folder = place.artifact("vectors").path
    queries, passages = StoredVectors(folder / "queries"), StoredVectors(folder / "passages")
    rows = np.arange(0, len(corpus.passages), 7)
    expected = teacher.encode([corpus.passages[row] for row in rows], "passage")
    np.testing.assert_allclose(passages[rows].astype(np.float32), expected, atol=1e-3)
    expected = teacher.encode(corpus.queries[:9], "query")
    np.testing.assert_allclose(queries[np.arange(9)].astype(np.float32), expected, atol=1e-3)


def test_no_negative_is_the_positive_or_a_passage_that_is_tested(made, place):
    artifact = place.artifact("corpus")
    corpus = CorpusFiles.read(artifact)
    negatives = np.load(place.artifact("negatives").path / "negatives.npy")
    assert (negatives >= 0).any()
    tested = {
        text_key(text)
        for kept in evaluation_sets(artifact).values()
        for text in kept.passages.values()
    }
    for own, row in zip(corpus.positive, negatives, strict=True):
        assert own not in row
        assert not {text_key(corpus.passages[i]) for i in row if i >= 0} & tested


def test_changing_the_student_makes_only_what_depends_on_it(made, place):
    asked = ["student.space=teacher", "release.asymmetric_retention=0"]
    done = json.loads(place.run("run", TINY, *asked, "--json").stdout)
    again = done["artifacts"]
    report = json.loads((Path(done["report"]).parent / "report.json").read_text())
    [both] = [model for model in report["models"].values() if model["role"] == "asymmetric"]
    teacher = report["models"]["teacher"]["scores"]["held-out"]["ndcg@10"]
    assert both["retention"]["mean"] == both["scores"]["held-out"]["ndcg@10"] / teacher
    assert [stage for stage in STAGES if not again[stage]["reused"]] == [
        "student",
        "report",
        "release",
    ]


def test_a_failed_gate_says_by_how_much_and_leaves_no_release(made, place):
    asked = ["release.ndcg.held-out=0.999"]
    done = place.run("run", TINY, *asked)
    assert done.returncode == 1
    assert "the gate failed" in done.stderr and "below the floor of 0.999" in done.stderr
    assert len(Store(str(place.folder / "runs")).published("release")) < 3
    asked += ["release.exports=[onnx-int8]"]
    done = place.run("run", TINY, *asked, "--no-gate", "--json")
    assert json.loads(done.stdout)["gate"]["passed"] is False
    content = json.loads((place.artifact("release").path / "release.json").read_text())
    assert content["gate"]["overridden"] is True


def test_a_release_holds_checked_exports_and_a_card_beside_every_model(made, place):
    # The release before, which was asked for one.
    release = place.artifact("release").path
    told = json.loads((release / "release.json").read_text())["exports"]["onnx-int8"]
    assert told["texts"] == 128 and told["cosine"]["min"] >= 0.99
    assert set(told["ndcg@10"]) == {"held-out"}
    encoder, exported = load(release / "student"), Exported(release / told["folder"])
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
    done = subprocess.run(
        place.command("encode", "student/tiny", "--query"),
        input="one\ntwo\n",
        capture_output=True,
        text=True,
        cwd=place.folder,
        env=place.env,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    student = load(place.artifact("student").path)
    expected = student.encode(["one", "two"], "query")
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-6)


def test_a_killed_run_leaves_nothing_half_made_and_the_next_goes_on(tmp_path):
    place = Place(tmp_path)
    words = ["run", TINY, "--until", "teacher", "teacher.phases.0.steps=40"]
    words += ["scale.teacher.checkpoint_every=2", "scale.teacher.engine=torch"]
    words += ["scale.teacher.zero_stage=0"]
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(
            place.command(*words),
            cwd=tmp_path,
            env=place.env,
            start_new_session=True,
            stdout=said,
            stderr=said,
        )
    deadline = time.monotonic() + 120
    # Written when every worker has handed its part of a checkpoint in.
    while not list(tmp_path.glob("runs/.train/*/*/1-of-2.json")):
        assert first.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)  # polls for a condition, with a deadline
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    store = Store(str(tmp_path / "runs"))
    assert [artifact.stage for artifact in store.published()] == ["corpus"]
    dead = json.loads(place.run("runs", "show", "--json").stdout)["runs"][0]
    assert [one["outcome"] for one in dead["stages"]] == ["made", dead["outcome"]]
    assert dead["outcome"] in ("running", "killed"), "as yet nobody can tell"
    place.env["STILLROOM_LOGS"] = "json"
    done = place.run(*words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    [resumed] = [line for line in lines if line["message"].startswith("goes on after step")]
    told = json.loads(place.run("runs", "show", resumed["run"], "--json").stdout)
    assert told["outcome"] == "done"
    corpus, teacher = told["stages"]
    assert (corpus["outcome"], teacher["outcome"]) == ("reused", "made")
    assert resumed["message"] == f"goes on after step {teacher['resumed_after']}, on 2 workers"
    assert (resumed["stage"], resumed["rank"]) == (teacher["ref"], 0)
    assert {line["run"] for line in lines if "run" in line} == {told["run"]}
    lines = (place.artifact("teacher").path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))
