"""Exports opened by sentence-transformers on ONNX, Optimum, fastembed and transformers.js:
`make exports`. The Python programs run in an environment of their own, for Optimum requires an
older transformers than ours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.encoders.export.formats import export_encoder
from support.make_encoder import make_encoder
from support.tiny_models import tiny_decoder, tiny_encoder

PROGRAMS = Path(sys.prefix) / "exports"  # where `make exports` installs them
SCRIPTS = Path(__file__).parent / "other_programs"

SHORT_TEXTS = ["one", "another text, and a longer one", "naïve 漢字", "third " * 9]
TEXTS = [*SHORT_TEXTS, "cut " * 400]
LOWEST_COSINE = {"onnx": 0.9999, "onnx-int8": 0.99, "onnx-int8-static": 0.99}
FILES = dict.fromkeys(LOWEST_COSINE, "model_quantized.onnx") | {"onnx": "model.onnx"}


def student(folder):
    """As MiniLM: a BERT whose tokenizer gives token types, mean pooling, and layers behind it."""
    base = make_encoder(tiny_encoder(folder), precision="float32", projection_dims=96,
                        prompts={"query": "find: ", "passage": ""})  # fmt: skip
    base.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return base.eval()


def small_student(folder):
    """The same without layers behind the pooling, so that other programs can pool alone."""
    return make_encoder(tiny_encoder(folder), precision="float32").eval()


def teacher(folder):
    """As our 7B teachers: a decoder that attends to both sides; EOS is pooled."""
    return make_encoder(
        tiny_decoder(folder), attention="bidirectional", pooling="last", append_eos=True,
        precision="float32", max_tokens=64, prompts={"query": "find: ", "passage": ""},
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """(name, format) → folder and the encoder's own vectors of TEXTS by role."""
    made = {}
    for make, formats in (
        (student, ("onnx", "onnx-int8", "onnx-int8-static")),
        (small_student, ("onnx",)),
        (teacher, ("onnx", "onnx-int8")),
    ):
        folder = tmp_path_factory.mktemp(make.__name__)
        encoder = make(folder / "base")
        vectors = {role: encoder.encode(TEXTS, role) for role in ("query", "passage")}
        for format in formats:
            out = folder / format
            export_encoder(encoder, format, out, [(text, "passage") for text in TEXTS])
            made[make.__name__, format] = out, vectors
    return made


def run(*command, **request):
    """What a program prints as JSON for a request, which is its standard input."""
    done = subprocess.run(
        [str(part) for part in command], input=json.dumps(request), capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_same_direction(vectors, expected, lowest):
    vectors = np.array(vectors)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((vectors * expected).sum(1) / norms).min() >= lowest


EXPORTS = [
    ("student", "onnx"),
    ("student", "onnx-int8"),
    ("student", "onnx-int8-static"),
    ("small_student", "onnx"),
    ("teacher", "onnx"),
    ("teacher", "onnx-int8"),
]


@pytest.mark.parametrize(("name", "format"), EXPORTS)
def test_sentence_transformers_runs_the_graph_with_prompts_and_cuts_as_we_do(exports, name, format):
    folder, expected = exports[name, format]
    python, script = PROGRAMS / "bin/python", SCRIPTS / "with_optimum.py"
    answer = run(python, script, folder=str(folder), file=FILES[format], texts=TEXTS)
    assert_same_direction(answer["query"], expected["query"], LOWEST_COSINE[format])
    assert_same_direction(answer["document"], expected["passage"], LOWEST_COSINE[format])
    assert answer["states"][::2] == [len(TEXTS), 64], "Optimum's own class opens it as well"


@pytest.mark.parametrize(("name", "format"), EXPORTS)
def test_fastembed_gets_the_encoder_s_vectors_from_a_custom_model(exports, name, format):
    folder, expected = exports[name, format]
    python, script = PROGRAMS / "bin/python", SCRIPTS / "with_fastembed.py"
    answer = run(
        python, script, folder=str(folder), file=f"onnx/{FILES[format]}", texts=TEXTS,
        dims=expected["passage"].shape[1],
    )  # fmt: skip
    assert_same_direction(answer, expected["passage"], LOWEST_COSINE[format])


@pytest.mark.parametrize(("name", "format"), EXPORTS)
def test_transformers_js_gets_the_encoder_s_vectors_and_can_pool_itself(exports, name, format):
    """Texts that it need not cut: it cuts off the end token, which we and the others keep."""
    folder, expected = exports[name, format]
    expected = expected["passage"][: len(SHORT_TEXTS)]
    pooling = {"student": "none", "small_student": "mean", "teacher": "last_token"}[name]
    dtype = "fp32" if format == "onnx" else "q8"
    answer = run(
        "node", SCRIPTS / "with_transformers.mjs", library=str(PROGRAMS), folder=str(folder),
        texts=SHORT_TEXTS, dtype=dtype, pooling=pooling,
    )  # fmt: skip
    assert_same_direction(answer["embedding"], expected, LOWEST_COSINE[format])
    if pooling != "none":
        assert_same_direction(answer["pooled"], expected, LOWEST_COSINE[format])


def test_a_graph_has_only_the_inputs_that_the_programs_give(exports):
    import onnxruntime

    for (name, format), (folder, _) in exports.items():
        session = onnxruntime.InferenceSession(folder / "onnx" / FILES[format])
        names = [given.name for given in session.get_inputs()]
        types = ["token_type_ids"] if name == "student" else []
        assert names == ["input_ids", "attention_mask", *types]


def test_weights_that_are_too_large_for_one_file_are_found_beside_it(tmp_path, monkeypatch):
    from stillroom.encoders.export import graph

    monkeypatch.setattr(graph, "MAX_FILE_BYTES", 1000)
    torch.manual_seed(0)
    encoder = small_student(tmp_path / "base")
    expected = encoder.encode(TEXTS, "passage")
    for format in ("onnx", "onnx-int8"):
        export_encoder(encoder, format, tmp_path / format, [(text, "query") for text in TEXTS])
        assert (tmp_path / format / "onnx" / f"{FILES[format]}_data").is_file()
        python, script = PROGRAMS / "bin/python", SCRIPTS / "with_optimum.py"
        answer = run(python, script, folder=str(tmp_path / format), file=FILES[format], texts=TEXTS)
        assert_same_direction(answer["document"], expected, LOWEST_COSINE[format])
