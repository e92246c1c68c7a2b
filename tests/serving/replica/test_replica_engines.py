import json

import numpy as np
import pytest

from stillroom.encoders.export.formats import export_encoder
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.serving.replica.engine_choice import check_engine, choose_engine
from stillroom.serving.replica.engines import load_engine
from support.tiny_models import tiny_encoder


def make_release(*formats: str, folder="/nowhere") -> Release:
    exports = {"teacher": {}, "student": {name: f"student/{name}" for name in formats}}
    return Release(
        name="tiny",
        ref=str(folder),
        root="runs",
        contracts={},
        folders={"teacher": "teacher", "student": "student"},
        exports=exports,
        created=0,
        api_urls={},
    )


@pytest.mark.parametrize(
    ("exports", "installed", "gpu", "chosen"),
    [
        (["openvino", "onnx"], {"openvino", "onnxruntime"}, False, "openvino"),
        (["openvino", "onnx"], {"onnxruntime"}, False, "onnx"),
        (["openvino", "onnx"], set(), False, "torch"),
        (["openvino", "onnx"], {"openvino", "onnxruntime"}, True, "torch"),
        (["onnx-int8", "openvino-int8"], {"openvino", "onnxruntime"}, False, "torch"),
        ([], {"openvino", "onnxruntime"}, False, "torch"),
    ],
)
def test_auto_is_the_fastest_runnable_export_with_the_vectors_that_were_evaluated(
    exports, installed, gpu, chosen, monkeypatch
):
    monkeypatch.setattr(
        "stillroom.serving.replica.engine_choice.find_spec",
        lambda name: name if name in installed else None,
    )
    assert choose_engine(make_release(*exports), "student", "auto", gpu) == chosen


@pytest.mark.parametrize(
    ("engine", "target", "gpu", "problem"),
    [
        ("onnx-int8", "student", False, "it contains: onnx"),
        ("onnx", "teacher", False, "no onnx export of its teacher (it contains: none)"),
        ("onnx", "student", True, "runs on the CPU"),
    ],
)
def test_an_engine_that_cannot_run_a_release_is_refused_before_anything_starts(
    engine, target, gpu, problem
):
    with pytest.raises(UserError) as refused:
        check_engine("serve args: x.engine", engine, make_release("onnx"), target, gpu)
    assert problem in str(refused.value)
    check_engine("serve args: x.engine", "onnx", make_release("onnx"), "student", False)


def test_an_exported_student_is_loaded_from_its_release_and_encodes_as_in_torch(tmp_path):
    encoder = create_encoder(
        str(tiny_encoder(tmp_path / "bert")),
        space="s",
        options=ContractOptions(pooling="mean", precision="float32", max_tokens=32),
    )
    folder = tmp_path / "release"
    save_encoder(encoder, folder / "student")
    texts = [("one", "query"), ("two and more", "passage")]
    export_encoder(load_encoder(folder / "student"), "onnx", folder / "student" / "onnx", texts)
    encoder = load_encoder(folder / "student")
    content = {
        "name": "tiny",
        "models": {"student": "student"},
        "exports": {"onnx": {"folder": "student/onnx"}},
        "gate": {"passed": True},
    }
    (folder / "release.json").write_text(json.dumps(content))
    release = Release.open(str(folder), "runs")
    tokens = encoder.prompter(["a text", "a longer text " * 9, "naïve 漢字"], "passage")
    expected = encoder.encode_tokens(tokens)
    for engine, packed in (("torch", True), ("onnx", False)):
        served = load_engine(release, "student", engine, threads=1)
        assert served.packed is packed
        split = served.encode_tokens(tokens, batch_tokens=64)
        one_batch = served.encode_batch(tokens)
        np.testing.assert_allclose(split, expected, atol=1e-5)
        np.testing.assert_allclose(one_batch, expected, atol=1e-5)
        assert split.shape == one_batch.shape == (3, 64)
