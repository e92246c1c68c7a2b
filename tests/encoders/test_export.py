import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

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


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_lora_teacher_opens_in_plain_transformers_with_peft_and_in_sentence_transformers(
    decoder, tmp_path, attention
):
    teacher = create(
        str(decoder), space="s", attention=attention, pooling="mean", precision="float32",
        prompts={"query": "find: ", "passage": ""}, lora=LORA,
    ).eval()  # fmt: skip
    for name, weight in teacher.named_parameters():
        if "lora_B" in name:  # which begins at zero
            torch.nn.init.normal_(weight, std=0.1)
    expected = teacher.encode(TEXTS, "query")
    save(teacher, tmp_path / "teacher")

    adapter = PeftConfig.from_pretrained(str(tmp_path / "teacher" / "adapter"))
    config = AutoConfig.from_pretrained(adapter.base_model_name_or_path)
    config.is_causal = attention == "causal"
    base = AutoModel.from_pretrained(adapter.base_model_name_or_path, config=config)
    model = PeftModel.from_pretrained(base, str(tmp_path / "teacher" / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    batch = tokenizer([f"find: {text}" for text in TEXTS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    counted = batch["attention_mask"][..., None]
    vectors = (states * counted).sum(1) / counted.sum(1)
    vectors = torch.nn.functional.normalize(vectors, dim=-1).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    other = teacher.encode(TEXTS, "passage")
    assert abs(other - expected).max() > 0.01, "the prompt is seen"

    to_sentence_transformers(load(tmp_path / "teacher"), tmp_path / "merged")
    theirs = SentenceTransformer(str(tmp_path / "merged"))
    np.testing.assert_allclose(theirs.encode_query(TEXTS), expected, atol=1e-5)


def test_what_sentence_transformers_cannot_say_is_refused(decoder, tmp_path):
    model = create(str(decoder), space="s", pooling="last", append_eos=True, precision="float32")
    with pytest.raises(UserError, match="EOS"):
        to_sentence_transformers(model, tmp_path)
