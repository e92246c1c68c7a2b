import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from stillroom.encoders.export import run_onnx, to_onnx, to_sentence_transformers
from stillroom.encoders.prompt import pad
from stillroom.encoders.store import create, load, save
from stillroom.errors import UserError

TEXTS = ["one", "another text, and a longer one", "third " * 30]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}


@pytest.fixture
def student(encoder):
    return create(
        str(encoder), space="s", pooling="mean", projection_dims=96, precision="float32",
        prompts={"query": "find: ", "passage": ""},
    ).eval()  # fmt: skip


def test_onnx_gives_the_encoder_s_vectors_for_any_number_and_length_of_texts(student, tmp_path):
    to_onnx(student, tmp_path)
    for texts in (TEXTS, TEXTS[:1], ["word " * 90] * 2):
        batch = pad(student.prompter(texts, "query"), student.pad_id)
        np.testing.assert_allclose(
            run_onnx(tmp_path, batch), student.encode(texts, "query"), atol=1e-5
        )


def test_a_decoder_s_merged_adapter_is_exported_bidirectional(decoder, tmp_path):
    trained = create(
        str(decoder), space="s", attention="bidirectional", pooling="last", append_eos=True,
        precision="float32", lora=LORA,
    )  # fmt: skip
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save(trained, tmp_path / "adapter")
    merged = load(tmp_path / "adapter")
    to_onnx(merged, tmp_path / "onnx")
    batch = pad(merged.prompter(TEXTS, "query"), merged.pad_id)
    np.testing.assert_allclose(
        run_onnx(tmp_path / "onnx", batch), merged.encode(TEXTS, "query"), atol=1e-5
    )


def test_a_sentence_transformers_folder_holds_prompts_and_projection(student, tmp_path):
    to_sentence_transformers(student, tmp_path)
    theirs = SentenceTransformer(str(tmp_path))
    np.testing.assert_allclose(
        theirs.encode_query(TEXTS), student.encode(TEXTS, "query"), atol=1e-5
    )


def test_what_sentence_transformers_cannot_say_is_refused(decoder, tmp_path):
    model = create(str(decoder), space="s", pooling="last", append_eos=True, precision="float32")
    with pytest.raises(UserError, match="EOS"):
        to_sentence_transformers(model, tmp_path)
