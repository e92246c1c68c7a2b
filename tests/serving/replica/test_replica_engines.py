import asyncio
import json

import numpy as np
import pytest
import torch

from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.layers.packing import pack_attention
from stillroom.encoders.tokens.prompter import Batch, pad
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.serving.replica.batching import Batcher
from stillroom.serving.replica.engines import check_engine, choose_engine, load_engine
from support.tiny_models import tiny_encoder


def a_release(*formats: str, folder="/nowhere") -> Release:
    exports = {"teacher": {}, "student": {name: f"student/{name}" for name in formats}}
    return Release(
        name="tiny",
        ref=str(folder),
        root="runs",
        contracts={},
        folders={"teacher": "teacher", "student": "student"},
        exports=exports,
        created=0,
        elsewhere={},
    )


@pytest.mark.parametrize(
    ("carried", "installed", "gpu", "chosen"),
    [
        (["openvino", "onnx"], {"openvino", "onnxruntime"}, False, "openvino"),
        (["openvino", "onnx"], {"onnxruntime"}, False, "onnx"),
        (["openvino", "onnx"], set(), False, "torch"),
        (["openvino", "onnx"], {"openvino", "onnxruntime"}, True, "torch"),
        (["onnx-int8", "openvino-int8"], {"openvino", "onnxruntime"}, False, "torch"),
        ([], {"openvino", "onnxruntime"}, False, "torch"),
    ],
)
def test_auto_is_the_fastest_that_is_there_and_whose_vectors_are_those_that_were_evaluated(
    carried, installed, gpu, chosen, monkeypatch
):
    monkeypatch.setattr(
        "stillroom.serving.replica.engines.find_spec",
        lambda name: name if name in installed else None,
    )
    assert choose_engine(a_release(*carried), "student", "auto", gpu) == chosen


@pytest.mark.parametrize(
    ("engine", "target", "gpu", "said"),
    [
        ("onnx-int8", "student", False, "it carries: onnx"),
        ("onnx", "teacher", False, "no onnx export of its teacher (it carries: none)"),
        ("onnx", "student", True, "runs on the CPU"),
    ],
)
def test_an_engine_that_a_release_cannot_be_run_on_is_refused_before_anything_starts(
    engine, target, gpu, said
):
    with pytest.raises(UserError) as refused:
        check_engine("serve args: x.engine", engine, a_release("onnx"), target, gpu)
    assert said in str(refused.value)
    check_engine("serve args: x.engine", "onnx", a_release("onnx"), "student", False)


class Flat(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids, mask, pool_mask):
        return self.encoder(Batch(ids, mask, pool_mask))


def test_an_exported_student_is_found_in_its_release_and_encodes_as_in_torch(tmp_path):
    encoder = create(
        str(tiny_encoder(tmp_path / "bert")), space="s", pooling="mean", precision="float32",
        max_tokens=32,
    )  # fmt: skip
    folder = tmp_path / "release"
    save(encoder, folder / "student")
    exported = folder / "student" / "onnx"
    exported.mkdir()
    encoder = load(folder / "student")
    encoder.contract.write(exported)
    encoder.tokenizer.save_pretrained(exported)
    (exported / "export.json").write_text(json.dumps({"parameters": encoder.parameters_total}))
    batch = pad(encoder.prompter(["one", "two and more"], "query"), encoder.pad_id)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        Flat(encoder), (batch.ids_bl, batch.mask_bl, batch.pool_mask_bl), exported / "model.onnx",
        input_names=["input_ids", "attention_mask", "pool_mask"], output_names=["vectors"],
        dynamic_shapes=(axes, axes, axes), dynamo=True, verbose=False,
    )  # fmt: skip
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
        found = load_engine(release, "student", engine, threads=1)
        assert found.packed is packed
        rows = found.encode_tokens(tokens, batch_tokens=64)
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        assert rows.shape == (3, 64)


def test_many_callers_of_several_threads_get_what_one_alone_would(tmp_path):
    path = tiny_encoder(tmp_path / "bert")
    encoder = create(
        str(path), space="s", pooling="mean", precision="float32", max_tokens=64
    ).eval()  # fmt: skip
    assert encoder.concurrent
    pack_attention(encoder.backbone)
    words = ["word " * (1 + 7 * n % 40) + str(n) for n in range(200)]
    tokens = encoder.prompter(words, "passage")
    expected = encoder.encode_tokens(tokens)

    def forward(tokens, threads):
        return encoder.encode_tokens(tokens, batch_tokens=256)

    async def asked():
        batcher = Batcher(forward, budget=256, wait_s=0, packed=True, threads=3, divided=True)
        each = [tokens[start : start + 5] for start in range(0, len(tokens), 5)]
        return await asyncio.gather(*map(batcher.encode, each))

    rows = np.concatenate([answer.rows for answer in asyncio.run(asked())])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
