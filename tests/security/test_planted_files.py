"""Planted files in a model or an artifact are refused by name, and never run."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stillroom.encoders.files.convert import unpack_zip
from stillroom.encoders.files.create import combine_encoders
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.safe_read import map_array
from stillroom.encoders.vectors.stored import StoredVectors, shard_path, write_order
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.stages.corpus.contamination import load_contamination_index
from stillroom.storage.artifacts import Store
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.shared_folder import SharedFolder
from support.make_encoder import make_encoder


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def malice(tmp_path):
    """An object to plant; the test fails if it was unpickled."""
    mark = tmp_path / "it was run"
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists(), "an unpickled object would be noticed"
    mark.unlink()
    yield Malice(mark)
    assert not mark.exists(), "a planted pickle was run"


@pytest.fixture
def model(encoder, tmp_path):
    folder = tmp_path / "model"
    save_encoder(make_encoder(encoder, precision="float32"), folder)
    return folder


@pytest.fixture
def adapted(decoder, tmp_path):
    lora = LoraOptions(rank=2, alpha=4)
    base = shutil.copytree(decoder, tmp_path / "base")
    encoder = make_encoder(base, precision="float32", lora=lora)
    save_encoder(encoder, tmp_path / "adapted")
    return tmp_path / "adapted"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", ": holds no weights in Safetensors, only pytorch_model.bin"),
        ("model.safetensors", "/model.safetensors: is not a Safetensors file"),
    ],
)
def test_pickled_weights_are_refused(model, malice, file, message):
    (model / "model.safetensors").unlink()
    torch.save({"weight": malice}, model / file)
    with pytest.raises(UserError, match=f"{model}{message}"):
        load_encoder(model)


def test_pickled_weights_beside_safetensors_are_ignored(model, malice):
    torch.save({"weight": malice}, model / "pytorch_model.bin")
    (model / "tokenizer.pkl").write_bytes(pickle.dumps(malice))
    assert load_encoder(model).encode(["text"], "query").shape == (1, 64)


def test_a_pickled_adapter_is_refused(adapted, malice):
    (adapted / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weight": malice}, adapted / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is not a Safetensors file"):
        load_encoder(adapted)


def test_an_adapter_is_refused_before_its_base_is_read(adapted, tmp_path):
    (adapted / "adapter" / "adapter_model.safetensors").unlink()
    (
        tmp_path / "base" / "model.safetensors"
    ).unlink()  # reading the base first would fail on this file
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is not a Safetensors file"):
        load_encoder(adapted)


def test_a_pickled_projection_is_refused(encoder, tmp_path, malice):
    save_encoder(make_encoder(encoder, projection_dims=8), tmp_path)
    torch.save({"weight": malice}, tmp_path / "projection.safetensors")
    with pytest.raises(UserError, match=r"projection\.safetensors: is not a Safetensors file"):
        load_encoder(tmp_path)


def test_a_pickled_dense_module_is_refused(encoder, tmp_path, malice):
    save_encoder(make_encoder(encoder, projection_dims=8), tmp_path / "dense")
    (
        tmp_path / "dense" / "contract.json"
    ).unlink()  # without it, this is a sentence-transformers folder
    (tmp_path / "dense" / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": malice}, tmp_path / "dense" / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"2_Dense/model\.safetensors: does not exist\. Save the weights as Safe"
    ):
        load_encoder(tmp_path / "dense")


@pytest.mark.parametrize("kind", ["TransfoXLTokenizer", "NoSuchTokenizer"])
def test_a_pickled_tokenizer_is_refused(model, malice, kind):
    for file in model.glob("tokenizer*"):
        file.unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for file in ("vocab.pkl", "vocab.bin", "tokenizer.json", "tokenizer.model"):
        (model / file).write_bytes(pickle.dumps(malice))
    with pytest.raises(UserError, match=r"tokenizer\.json: is not JSON"):
        load_encoder(model)


@pytest.mark.parametrize("file", ["order.npy", "shard-000000.npy"])
def test_objects_among_stored_vectors_are_refused(tmp_path, malice, file):
    write_order(tmp_path, np.arange(1))
    np.save(shard_path(tmp_path, 0), np.zeros((1, 4), np.float16))
    np.save(tmp_path / file, np.array([malice], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=f"{file}: is not an array of numbers"):
        StoredVectors(tmp_path)


def test_a_pickle_in_place_of_an_array_is_refused(tmp_path, malice):
    (tmp_path / "negatives.npy").write_bytes(pickle.dumps(malice))
    with pytest.raises(UserError, match=r"negatives\.npy: is not an array of numbers"):
        map_array(tmp_path / "negatives.npy")


def test_an_intermediate_file_that_was_replaced_is_refused(tmp_path, malice):
    (tmp_path / "contamination-index.pickle").write_bytes(pickle.dumps(malice))
    with pytest.raises(UserError, match=r"contamination-index\.pickle: was altered"):
        load_contamination_index(SharedFolder(str(tmp_path)), "the digest of another")


@pytest.mark.parametrize("member", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt"])
def test_a_zip_that_leads_out_of_its_folder_is_refused(tmp_path, member):
    part = tmp_path / "model.zip.001"
    with zipfile.ZipFile(part, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr(member, "planted")
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError, match=r"model\.zip\.001: holds .*outside\.txt', outside"):
        unpack_zip([part], tmp_path / "into")
    assert not list(tmp_path.rglob("outside.txt"))


@pytest.mark.parametrize("path", ["../../etc", "/etc"])
def test_a_module_outside_the_model_s_folder_is_refused(model, path):
    content = json.loads((model / "modules.json").read_text())
    content[1]["path"] = path
    (model / "modules.json").write_text(json.dumps(content))
    (model / "contract.json").unlink()
    with pytest.raises(UserError, match=rf"modules\.json: names '{path}', outside its folder"):
        load_encoder(model)


@pytest.mark.parametrize("path", ["../one", "/etc"])
def test_an_ensemble_s_member_outside_its_folder_is_refused(model, tmp_path, path):
    save_encoder(
        combine_encoders([load_encoder(model), load_encoder(model)], "average", space="s"),
        tmp_path / "both",
    )
    content = json.loads((tmp_path / "both" / "contract.json").read_text())
    content["members"][1] = path
    (tmp_path / "both" / "contract.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"contract\.json: names '{path}', outside its folder"):
        load_encoder(tmp_path / "both")


# --- artifacts ------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path):
    """(folder of a published release, its store)."""
    store = Store(str(tmp_path / "root"))
    with store.draft("release", "small", "aa") as draft:
        (draft.path / "student").mkdir()
        save_file({"weight": torch.zeros(2)}, draft.path / "student" / "model.safetensors")
        content = {"name": "small", "gate": {"passed": True}, "models": {"student": "student"}}
        (draft.path / "release.json").write_text(json.dumps(content))
        artifact = draft.publish({"stage": "release", "inputs": {}, "section": {}})
    return artifact.path, store


def test_a_symlinked_folder_inside_an_artifact_is_refused(release, tmp_path):
    folder, store = release
    shutil.move(folder / "student", tmp_path / "elsewhere")
    (folder / "student").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"student/model\.safetensors: differs from its artifact's manifest"
    ):
        store.open("release", "small", "aa")


def test_an_artifact_under_a_symlinked_root_opens(release, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert Store(str(tmp_path / "link")).open("release", "small", "aa").name == "small"


@pytest.mark.parametrize(
    ("field", "value"), [("bytes", 1), ("bytes", "many"), ("sha256", "0" * 64), ("sha256", None)]
)
def test_a_wrong_manifest_is_refused_before_anything_is_served(release, field, value):
    folder, store = release
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["student/model.safetensors"][field] = value
    atomic_write_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match="manifest"):
        Release.open("release/small", store.root)


def test_replaced_weights_are_not_served_from_a_folder_either(release):
    folder, _ = release
    save_file({"weight": torch.ones(2)}, folder / "student" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"model\.safetensors: differs from its artifact's manifest"
    ):
        Release.open(str(folder), "runs")


def test_a_release_that_names_a_folder_outside_is_refused(release):
    folder, _ = release
    content = json.loads((folder / "release.json").read_text())
    content["models"]["student"] = "../../../secret"
    (folder / "release.json").write_text(json.dumps(content))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"release\.json: names '\.\./\.\./\.\./secret', outside"):
        Release.open(str(folder), "runs")
