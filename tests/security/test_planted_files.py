"""What somebody planted in a model or an artifact is refused by name, and never run."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stillroom.encoders.files.create import combine, create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.model_names import _from_zip
from stillroom.encoders.safe_read import array
from stillroom.encoders.vectors.stored import StoredVectors, shard_path
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.stages.corpus.cleaning import _judged
from stillroom.storage.artifacts import Store, atomic_json


class Malice:
    """Unpickled, it leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def malice(tmp_path):
    """Fails where it was run."""
    mark = tmp_path / "it was run"
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists(), "it would be noticed"
    mark.unlink()
    yield Malice(mark)
    assert not mark.exists(), "a planted pickle was run"


@pytest.fixture
def model(encoder, tmp_path):
    folder = tmp_path / "model"
    save(create(str(encoder), space="s", pooling="mean", precision="float32"), folder)
    return folder


@pytest.fixture
def adapted(decoder, tmp_path):
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
    base = shutil.copytree(decoder, tmp_path / "base")
    made = create(str(base), space="s", pooling="mean", lora=lora, precision="float32")
    save(made, tmp_path / "adapted")
    return tmp_path / "adapted"


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_refused(model, malice, file):
    (model / "model.safetensors").unlink()
    torch.save({"weight": malice}, model / file)
    with pytest.raises(UserError, match=f"{model}: cannot be loaded"):
        load(model)


def test_pickled_weights_beside_the_right_ones_are_not_looked_at(model, malice):
    torch.save({"weight": malice}, model / "pytorch_model.bin")
    (model / "tokenizer.pkl").write_bytes(pickle.dumps(malice))
    assert load(model).encode(["text"], "query").shape == (1, 64)


def test_a_pickled_adapter_is_refused(adapted, malice):
    (adapted / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weight": malice}, adapted / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is no Safetensors file"):
        load(adapted)


def test_an_adapter_is_refused_before_its_base_is_read(adapted, tmp_path):
    (adapted / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "base" / "model.safetensors").unlink()  # it would be the first to be missed
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is no Safetensors file"):
        load(adapted)


def test_a_pickled_projection_is_refused(model, malice):
    torch.save({"weight": malice}, model / "projection.safetensors")
    with pytest.raises(UserError, match=r"projection\.safetensors: is no Safetensors file"):
        load(model)


def test_a_pickled_dense_module_is_refused(encoder, tmp_path, malice):
    made = create(str(encoder), space="s", pooling="mean", projection_dims=8)
    save(made, tmp_path / "dense")
    (tmp_path / "dense" / "contract.json").unlink()  # then it is sentence-transformers' folder
    (tmp_path / "dense" / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": malice}, tmp_path / "dense" / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"2_Dense/model\.safetensors: does not exist\. Save the weights as Safe"
    ):
        load(tmp_path / "dense")


@pytest.mark.parametrize("kind", ["TransfoXLTokenizer", "NoSuchTokenizer"])
def test_a_pickled_tokenizer_is_refused(model, malice, kind):
    for file in model.glob("tokenizer*"):
        file.unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for file in ("vocab.pkl", "vocab.bin", "tokenizer.json", "tokenizer.model"):
        (model / file).write_bytes(pickle.dumps(malice))
    with pytest.raises(UserError, match=f"{model}: has no tokenizer that loads"):
        load(model)


@pytest.mark.parametrize("file", ["order.npy", "shard-000000.npy"])
def test_objects_among_stored_vectors_are_refused(tmp_path, malice, file):
    np.save(tmp_path / "order.npy", np.arange(1))
    np.save(shard_path(tmp_path, 0), np.zeros((1, 4), np.float16))
    np.save(tmp_path / file, np.array([malice], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=f"{file}: is no array of numbers"):
        StoredVectors(tmp_path)


def test_a_pickle_in_the_place_of_an_array_is_refused(tmp_path, malice):
    (tmp_path / "negatives.npy").write_bytes(pickle.dumps(malice))
    with pytest.raises(UserError, match=r"negatives\.npy: is no array of numbers"):
        array(tmp_path / "negatives.npy")


def test_what_was_put_in_the_place_of_our_own_work_is_refused(tmp_path, malice):
    (tmp_path / "judged.pickle").write_bytes(pickle.dumps(malice))
    with pytest.raises(UserError, match=r"judged\.pickle: was altered"):
        _judged(tmp_path / "judged.pickle", "the digest of another")


@pytest.mark.parametrize("member", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt"])
def test_a_zip_that_leads_out_of_its_folder_is_refused(tmp_path, member):
    part = tmp_path / "model.zip.001"
    with zipfile.ZipFile(part, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr(member, "planted")
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError, match=r"model\.zip\.001: holds .*outside\.txt', outside"):
        _from_zip([part], tmp_path / "into")
    assert not list(tmp_path.rglob("outside.txt"))


@pytest.mark.parametrize("path", ["../../etc", "/etc"])
def test_a_module_outside_the_model_is_refused(model, path):
    content = json.loads((model / "modules.json").read_text())
    content[1]["path"] = path
    (model / "modules.json").write_text(json.dumps(content))
    (model / "contract.json").unlink()
    with pytest.raises(UserError, match=rf"modules\.json: names '{path}', outside its folder"):
        load(model)


@pytest.mark.parametrize("path", ["../one", "/etc"])
def test_a_member_outside_several_models_is_refused(model, tmp_path, path):
    save(combine([load(model), load(model)], "average", space="s"), tmp_path / "both")
    told = json.loads((tmp_path / "both" / "contract.json").read_text())
    told["members"][1] = path
    (tmp_path / "both" / "contract.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=rf"contract\.json: names '{path}', outside its folder"):
        load(tmp_path / "both")


# --- artifacts ------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path):
    """The folder of a published artifact of the stage, and its store."""
    store = Store(str(tmp_path / "root"))
    with store.draft("release", "small", "aa") as draft:
        (draft.path / "student").mkdir()
        save_file({"weight": torch.zeros(2)}, draft.path / "student" / "model.safetensors")
        told = {"name": "small", "gate": {"passed": True}, "models": {"student": "student"}}
        (draft.path / "release.json").write_text(json.dumps(told))
        made = draft.publish({"stage": "release", "inputs": {}, "section": {}})
    return made.path, store


def test_a_linked_folder_inside_an_artifact_is_refused(release, tmp_path):
    folder, store = release
    shutil.move(folder / "student", tmp_path / "elsewhere")
    (folder / "student").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"student/model\.safetensors: is not what .* manifest says"
    ):
        store.open("release", "small", "aa")


def test_an_artifact_under_a_linked_root_opens(release, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert Store(str(tmp_path / "link")).open("release", "small", "aa").name == "small"


@pytest.mark.parametrize(
    ("field", "value"), [("bytes", 1), ("bytes", "many"), ("sha256", "0" * 64), ("sha256", None)]
)
def test_a_manifest_that_lies_is_refused_before_anything_is_served(release, field, value):
    folder, store = release
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["student/model.safetensors"][field] = value
    atomic_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match="manifest"):
        Release.open("release/small", store.root)


def test_weights_that_were_exchanged_are_not_served_from_a_folder_either(release):
    folder, _ = release
    save_file({"weight": torch.ones(2)}, folder / "student" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: is not what .* manifest says"):
        Release.open(str(folder), "runs")


def test_a_release_that_names_a_folder_outside_is_refused(release):
    folder, _ = release
    told = json.loads((folder / "release.json").read_text())
    told["models"]["student"] = "../../../secret"
    (folder / "release.json").write_text(json.dumps(told))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"release\.json: names '\.\./\.\./\.\./secret', outside"):
        Release.open(str(folder), "runs")
