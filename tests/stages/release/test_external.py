"""`stillroom release create`: releases of models that no recipe made."""

import json
import shutil

import numpy as np
import pytest

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import BaseContract, index_conflict
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.evaluation.checked_export import export_and_check
from stillroom.evaluation.same_space import compare_spaces
from stillroom.release.reader import Release
from stillroom.serving.app import build
from stillroom.serving.replica.engines import load_engine
from stillroom.storage.artifacts import Store
from support.in_process_cli import run_command
from support.library_folders import save_library_model, static_embedding
from support.make_encoder import make_encoder
from support.tiny_models import tiny_encoder

TEXTS = [f"passage number {number} about {word}" for number, word in enumerate("abcdefgh")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders as their owners have them: `large`, its twin `small` of another name, `stranger` of
    the same name as `large`; `published` without a contract; and the evaluation set `set`."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_encoder(folder / "base")
    for name, space in (("large", "one"), ("small", "two")):
        save_encoder(make_encoder(base, space=space, precision="float32"), folder / name)
    stranger = make_encoder(tiny_encoder(folder / "other", seed=1), space="one")
    save_encoder(stranger, folder / "stranger")
    shutil.copytree(folder / "small", folder / "published")
    (folder / "published" / "contract.json").unlink()
    rows = {"corpus": "p", "queries": "q"}
    for file, prefix in rows.items():
        lines = [{"_id": f"{prefix}{n}", "text": text} for n, text in enumerate(TEXTS)]
        path = folder / "set" / f"{file}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "set" / "qrels").mkdir()
    judged = "".join(f"q{n}\tp{n}\t1\n" for n in range(len(TEXTS)))
    (folder / "set" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


@pytest.fixture
def create(models, tmp_path):
    def run(*words):
        places = [str(models / word) if (models / str(word)).exists() else word for word in words]
        return run_command("release", "create", *places, "--root", tmp_path / "runs", cwd=models)

    return run


def created(done, tmp_path):
    assert done.returncode == 0, done.stderr
    return Store(str(tmp_path / "runs")).find("release/mine")


def test_models_that_agree_on_texts_get_one_space_whatever_their_names(create, models, tmp_path):
    done = create("mine", "--teacher", "large", "--student", "published")
    release = created(done, tmp_path)
    assert "nearest to the teacher's of the same text for 100.0% of 100 queries" in " ".join(
        done.stdout.split()
    )
    opened = Release.open(release.ref, str(tmp_path / "runs"))
    assert index_conflict(*opened.contracts.values()) is None
    assert {contract.space for contract in opened.contracts.values()} == {"one"}
    build({"releases": [release.ref], "root": str(tmp_path / "runs"), "policy": "asymmetric"})
    card = (release.path / "student" / "README.md").read_text()
    assert "its vectors are those that sentence-transformers gives" in card
    original = load_encoder(models / "published").encode(TEXTS, "query")
    served = load_engine(opened, "student", "auto", threads=1).encode(TEXTS, "query")
    np.testing.assert_allclose(served, original, atol=2e-6)


def test_models_of_one_name_that_disagree_get_a_space_each(create, tmp_path):
    done = create("mine", "--teacher", "large", "--student", "stranger")
    release = created(done, tmp_path)
    assert "cannot share an index" in " ".join(done.stdout.split())
    manifest = json.loads((release.path / "release.json").read_text())
    assert manifest["space"] == {"teacher": "one", "student": f"{release.ref}/student"}
    assert not manifest["same_space"]["same"]
    contracts = Release.open(release.ref, str(tmp_path / "runs")).contracts
    assert "spaces differ" in str(index_conflict(contracts["student"], contracts["teacher"]))


def test_a_measured_release_has_report_playground_and_cards(create, models, tmp_path):
    words = ["--teacher", "large", "--student", "small", "--gate", "set"]
    done = create("mine", *words, "mean_retention=0.9", "asymmetric_retention=0.9")
    release = created(done, tmp_path)
    report = json.loads((release.path / "report.json").read_text())
    assert set(report["models"]) == {
        "teacher", "student", "student asks, teacher answers", "BM25",
    }  # fmt: skip
    assert report["retention"]["mean"] == 1.0
    assert (release.path / "report.html").is_file()
    opened = Release.open(release.ref, str(tmp_path / "runs"))
    assert opened.corpora == ("set",)
    card = (release.path / "student" / "README.md").read_text()
    assert str(models / "small") in card
    assert "| license | unknown: its files do not say it |" in card
    assert "By measurement, whatever their names: teacher and student can share one index" in card
    assert '"model": "mine/student"' in card
    again = create("mine", *words, "mean_retention=0.9", "asymmetric_retention=0.9")
    assert "exists already" in again.stdout


def test_a_failed_gate_makes_no_release(create, tmp_path):
    done = create(
        "mine", "--teacher", "large", "--student", "stranger", "--gate", "set",
        "mean_retention=2.0", "asymmetric_retention=0.5",
    )  # fmt: skip
    assert done.returncode == 1
    assert "the gate failed: mean retention is" in done.stderr
    assert "asymmetric retention should be at least 0.500 and was not measured" in done.stderr
    assert Store(str(tmp_path / "runs")).list_artifacts("release") == []


@pytest.mark.parametrize(
    ("role", "floors"),
    [("teacher", []), ("student", ["ndcg_by_set={set: 0.01}", "texts_per_second=0.1"])],
)
def test_one_model_alone_can_be_a_release(create, role, floors, tmp_path):
    done = create("mine", f"--{role}", "published", "--gate", "set", *floors)
    release = created(done, tmp_path)
    assert list(Release.open(release.ref, str(tmp_path / "runs")).contracts) == [role]
    report = json.loads((release.path / "report.json").read_text())
    assert set(report["models"]) == {role, "BM25"}


def test_an_export_can_be_the_student_and_runs_on_its_own_engine(create, models, tmp_path):
    texts = {str(number): text for number, text in enumerate(TEXTS)}
    original = load_encoder(models / "small")
    sets = {"t": EvaluationSet(texts, texts, {})}
    export_and_check(original, "onnx", models / "exported", sets, "the tests")
    release = created(create("mine", "--student", "exported"), tmp_path)
    opened = Release.open(release.ref, str(tmp_path / "runs"))
    served = load_engine(opened, "student", "auto", threads=1)
    assert opened.own_format("student") == "onnx"
    np.testing.assert_allclose(
        served.encode(TEXTS, "query"), original.encode(TEXTS, "query"), atol=1e-5
    )


def test_a_model_that_only_the_library_runs_is_copied_whole(create, models, tmp_path):
    static = save_library_model(models / "static", [static_embedding()])
    release = created(create("mine", "--student", "static"), tmp_path)
    original = load_encoder(static).encode(TEXTS, "query")
    static.rename(models / "moved")
    opened = Release.open(release.ref, str(tmp_path / "runs"))
    served = load_engine(opened, "student", "auto", threads=1)
    np.testing.assert_allclose(served.encode(TEXTS, "query"), original, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--student", "small", "mean_retention=1"], "is measured on evaluation sets"),
        (["--student", "small", "--gate", "set", "speedup=2"], "compares with a teacher"),
        (["--teacher", "large", "--gate", "set", "speedup=2"], "is a floor for a student"),
        (["--student", "small", "--gate", "set", "ndcg_by_set={x: 0.1}"], "x: is not one of the"),
        (["--student", "small", "--gate", "set", "--gate", "set"], "a set is named set"),
        (["--student", "base"], "is a plain model"),
        (["--student", "small", "--student-pooling", "cls"], "says itself how it pools"),
        (["--student", "release/x"], "release/x: is a release"),
    ],
)
def test_what_cannot_be_released_is_refused_by_name(create, tmp_path, words, expected):
    done = create("mine", *words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert Store(str(tmp_path / "runs")).list_artifacts("release") == []


def test_agreement_of_one_role_alone_is_no_common_space():
    contract = BaseContract(max_tokens=8, dims=(4,), space="a")
    vectors = np.eye(4, dtype=np.float32)
    turned = np.roll(vectors, 1, axis=0)
    both = {"query": vectors, "passage": vectors}
    same = compare_spaces(contract, contract, both, both)
    assert (same.conflict, same.roles["query"].nearest, same.dims) == (None, 1.0, 4)
    half = compare_spaces(contract, contract, both, {"query": vectors, "passage": turned})
    assert half.conflict is not None
    collapsed = {role: np.tile(vectors[:1], (4, 1)) for role in both}
    assert compare_spaces(contract, contract, collapsed, collapsed).conflict is not None
