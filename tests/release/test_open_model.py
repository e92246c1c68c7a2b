"""Models that are served as they stand: every kind that `evaluate` takes, and what is refused."""

import json
import shutil

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import ApiContract, Prompts
from stillroom.encoders.files.create import combine_encoders
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.evaluation.checked_export import export_and_check
from stillroom.release.open_model import open_encoder, open_single_model
from stillroom.serving.replica.engine_choice import check_engine
from stillroom.serving.replica.engines import load_engine
from stillroom.storage.artifacts import Store
from support.in_process_router import in_process_router
from support.library_folders import save_library_model, static_embedding
from support.make_encoder import make_encoder

PROMPTS = {"query": "query: ", "passage": "passage: "}
TEXTS = ["one text", "another and a longer text, with more words", "naïve 漢字"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, encoder):
    """Kind → a model's name, and how else it is opened; in a folder with a root of artifacts."""
    folder = tmp_path_factory.mktemp("models")
    made = make_encoder(encoder, prompts=PROMPTS, precision="float32")
    save_encoder(made, folder / "ours")
    shutil.copytree(folder / "ours", folder / "published")
    (folder / "published" / "contract.json").unlink()
    members = [made, make_encoder(encoder, precision="float32")]
    save_encoder(combine_encoders(members, "concatenate", space="both"), folder / "both")
    save_library_model(folder / "static", [static_embedding()])
    texts = {str(number): text for number, text in enumerate(TEXTS)}
    sets = {"t": EvaluationSet(texts, texts, {})}
    export_and_check(made, "onnx", folder / "exported", sets, "the tests")
    with Store(str(folder / "runs")).draft("student", "mine", "0123456789ab") as draft:
        shutil.copytree(folder / "ours", draft.path, dirs_exist_ok=True)
        draft.publish({"stage": "student", "inputs": {}})
    return folder


KINDS = {
    "ours": ("ours", {}),
    "published": ("published", {}),
    "both": ("both", {}),
    "static": ("static", {}),  # run by sentence-transformers
    "exported": ("exported", {}),
    "student/mine": ("student/mine", {}),
    "random:bert": ("random:bert", {"pooling": "mean"}),
}


@pytest.mark.promise("vectors")
@pytest.mark.parametrize(("model", "options"), KINDS.values(), ids=KINDS)
def test_a_model_of_any_kind_answers_under_its_name_with_its_own_vectors(models, model, options):
    name = str(models / model) if (models / model).exists() else model
    single = open_single_model("served", name, str(models / "runs"), **options)
    source = single.source()
    encoder = open_encoder(source, **options)
    with in_process_router(single) as url:
        [listed] = httpx.get(f"{url}/v1/models").json()["data"]
        assert "/tmp" not in listed["space"]
        assert (listed["id"], listed["dims"]) == ("served", list(encoder.contract.dims))
        assert listed["max_tokens"] == encoder.contract.max_tokens
        assert httpx.get(f"{url}/info").json()["model_id"] == "served"
        for input_type, role in (("query", "query"), ("document", "passage")):
            body = {"model": "served", "input": TEXTS, "input_type": input_type}
            answer = httpx.post(f"{url}/v1/embeddings", json=body)
            vectors = [item["embedding"] for item in answer.json()["data"]]
            np.testing.assert_allclose(vectors, encoder.encode(TEXTS, role), atol=2e-6)
            assert answer.headers["x-stillroom-model"] == "served"
            assert answer.headers["x-stillroom-space"] == listed["space"]
        np.testing.assert_allclose(
            httpx.post(f"{url}/embed", json={"inputs": TEXTS}).json(), vectors, atol=2e-6
        )
        for other in ("served/model", "served/student", "student"):
            asked = httpx.post(f"{url}/v1/embeddings", json={"model": other, "input": "a"})
            assert asked.status_code == 404


def test_a_model_of_the_library_says_that_its_tokens_are_not_known(models):
    with in_process_router(open_single_model("served", str(models / "static"), "runs")) as url:
        for route, body in (("tokenize", {"inputs": "a"}), ("decode", {"ids": [1]})):
            answer = httpx.post(f"{url}/{route}", json=body)
            assert (answer.status_code, answer.json()["error_type"]) == (422, "Tokenizer")
            assert "run by sentence-transformers" in answer.json()["error"]


def test_an_artifact_that_is_served_is_the_one_of_the_deployment(models):
    root = models / "two"
    shutil.copytree(models / "runs", root)
    single = open_single_model("served", "student/mine", str(root))
    with Store(str(root)).draft("student", "mine", "ba9876543210") as draft:
        shutil.copytree(models / "ours", draft.path, dirs_exist_ok=True)
        draft.publish({"stage": "student", "inputs": {}})
    assert single.ref == "student/mine-0123456789ab"
    assert single.source().endswith("mine-0123456789ab")


def test_a_replica_refuses_files_that_changed_since_the_deployment(models):
    folder = shutil.copytree(models / "published", models / "changed")
    single = open_single_model("served", str(folder), "runs")
    weights = folder / "model.safetensors"
    save_file({name: 2 * array for name, array in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="other files here than where the application was deployed"):
        load_engine(single, "model", "auto", threads=1)


def test_an_export_is_run_by_its_own_engine_alone(models):
    single = open_single_model("served", str(models / "exported"), "runs")
    check_engine("e", "auto", single, "model", gpu=False)
    check_engine("e", "onnx", single, "model", gpu=False)
    for engine, gpu, problem in (
        ("torch", False, "without the weights for torch"),
        ("openvino", False, "without the weights for openvino"),
        ("auto", True, "onnx runs on the CPU"),
    ):
        with pytest.raises(UserError, match=problem):
            check_engine("e", engine, single, "model", gpu)
    plain = open_single_model("served", str(models / "ours"), "runs")
    with pytest.raises(UserError, match="is not an export.*stillroom export --format onnx"):
        check_engine("e", "onnx", plain, "model", gpu=False)


def refused(model, message, **options):
    with pytest.raises(UserError, match=message):
        open_single_model("served", str(model), "runs", **options)


def test_what_cannot_be_served_is_refused_by_name(models, tmp_path):
    refused("random:bert", "random:bert: is a plain model.*--pooling")
    refused("random:bert", "pooling: latent: has weights", pooling="latent")
    refused(models / "published", "pooling: cls.*says itself how it pools", pooling="cls")
    refused("release/mine", "release/mine: is a release")
    refused(tmp_path / "none", "there is no such folder")
    api = ApiContract(
        max_tokens=8, dims=(4,), space="a", base_url="http://x/v1", model="m", prompts=Prompts()
    )
    (tmp_path / "api").mkdir()
    api.write(tmp_path / "api")
    refused(tmp_path / "api", "is the API at http://x/v1")


def test_an_ensemble_whose_members_make_other_vectors_is_refused(models, tmp_path):
    folder = shutil.copytree(models / "both", tmp_path / "both")
    contract = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps({**contract, "dims": [64]}))
    refused(folder, "says 64 dims and .* tokens, and its members give 128")
