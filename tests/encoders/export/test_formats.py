import shutil
from typing import get_args

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from stillroom.config.recipe import ExportFormat
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.export import int8
from stillroom.encoders.export.formats import FORMATS, atomic_folder, export_encoder
from stillroom.encoders.export.runtimes import ONNX_FILE, ExportedEncoder, is_exported
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.errors import UserError
from stillroom.evaluation.fidelity import compare_encoders, texts_with_roles
from support.make_encoder import make_encoder

TEXTS = ["one", "another text, and a longer one", "third " * 30]
TEXTS_IN_BOTH_ROLES = [(text, role) for text in TEXTS for role in ("query", "passage")]
LORA = LoraOptions(rank=4, alpha=8)


@pytest.fixture(scope="module")
def student(encoder):
    model = make_encoder(
        encoder, precision="float32", prompts={"query": "find: ", "passage": ""}, projection_dims=96
    ).eval()
    model.contract = model.contract.model_copy(update={"dims": (96, 32)})
    # As in trained encoders, a few channels are many times larger than the others, so that one
    # scale of eight bits for all of them is too coarse.
    with torch.no_grad():
        model.backbone.encoder.layer[0].intermediate.dense.weight[0] *= 300
    return model


@pytest.fixture(scope="module")
def sets():
    texts = {str(i): f"{'word ' * (i % 7)}number {i} of {i * i}" for i in range(24)}
    return {"numbers": EvaluationSet(texts, {"q": "number 5"}, {"q": {"5": 1}})}


@pytest.fixture(scope="module")
def onnx(student, sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_encoder(student, "onnx", folder, texts_with_roles(sets))
    return folder


@pytest.mark.promise("vectors")
def test_onnx_gives_the_encoder_s_vectors_for_any_texts_roles_and_sizes(student, onnx):
    assert is_exported(onnx)
    exported = ExportedEncoder(onnx, threads=1)
    assert exported.contract == student.contract
    assert exported.parameters_total == student.parameters_total
    for texts in (TEXTS, TEXTS[:1], ["word " * 90] * 2):
        for role, dims in (("query", None), ("passage", 32)):
            np.testing.assert_allclose(
                exported.encode(texts, role, dims=dims, batch_tokens=64),
                student.encode(texts, role, dims=dims),
                atol=1e-5,
            )
    with pytest.raises(UserError, match="dims: 33"):
        exported.encode(TEXTS, "query", dims=33)


@pytest.mark.promise("vectors")
def test_a_decoder_s_merged_adapter_is_exported_bidirectional(decoder, tmp_path):
    trained = make_encoder(
        decoder,
        attention="bidirectional",
        pooling="last",
        append_eos=True,
        precision="float32",
        lora=LORA,
    )
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_encoder(trained, tmp_path / "adapter")
    merged = load_encoder(tmp_path / "adapter")
    export_encoder(merged, "onnx", tmp_path / "onnx", TEXTS_IN_BOTH_ROLES)
    np.testing.assert_allclose(
        ExportedEncoder(tmp_path / "onnx").encode(TEXTS, "query"),
        merged.encode(TEXTS, "query"),
        atol=1e-5,
    )


@pytest.mark.parametrize("quantise", [int8.quantise_dynamic, int8.quantise_static])
def test_int8_leaves_as_few_nodes_in_float_as_its_floor_allows(
    student, onnx, sets, tmp_path, monkeypatch, quantise
):
    folder = tmp_path / "int8"
    shutil.copytree(onnx, folder)
    sample = int8.CalibrationSample.draw(student, texts_with_roles(sets), 64)
    unrestricted = quantise(onnx / ONNX_FILE, folder / ONNX_FILE, sample)
    lowest = sample.cosines(ExportedEncoder(folder).forward).min()
    assert unrestricted["float"] == [] and int8.MIN_COSINE < lowest < 0.99999
    # A floor so high that something has to stay in float.
    monkeypatch.setattr(int8, "MIN_COSINE", lowest + 0.3 * (1 - lowest))
    details = quantise(onnx / ONNX_FILE, folder / ONNX_FILE, sample)
    assert 0 < len(details["float"]) < details["quantised"]
    assert sample.cosines(ExportedEncoder(folder).forward).min() >= int8.MIN_COSINE
    assert {path.name for path in folder.iterdir()} == {path.name for path in onnx.iterdir()}
    if quantise is int8.quantise_static:  # the dynamic ranges depend on the batch
        exported = ExportedEncoder(folder)
        batched = exported.encode(TEXTS, "query")[:1]
        np.testing.assert_allclose(exported.encode(TEXTS[:1], "query"), batched, atol=1e-5)


def test_a_text_that_misses_the_floor_is_named(student, sets):
    def wrong(texts, role):
        vectors = student.encode(texts, role)
        vectors[[text == sets["numbers"].passages["7"] for text in texts]] *= -1
        return vectors

    with pytest.raises(UserError, match=r"1 of 25 texts .* -1\.00000 at worst \('number 7 of 49'"):
        compare_encoders(student.encode, wrong, sets, floor=0.99, name="onnx-int8")


def test_a_sample_has_texts_of_all_lengths(student):
    texts = [("x " * n, "passage") for n in range(1, 50)]
    sample = int8.CalibrationSample.draw(student, texts, 5)
    lengths = [len(text.ids) for text in sample.tokens]
    assert len(lengths) == 5 and lengths == sorted(lengths)
    assert lengths[0] == 3 and lengths[-1] == 51


def test_a_sentence_transformers_folder_holds_prompts_projection_and_smaller_sizes(
    student, tmp_path
):
    export_encoder(student, "sentence-transformers", tmp_path / "out", TEXTS_IN_BOTH_ROLES)
    reopened = FORMATS["sentence-transformers"].reopen(tmp_path / "out")
    for role in ("query", "passage"):
        np.testing.assert_allclose(reopened(TEXTS, role), student.encode(TEXTS, role), atol=1e-5)
    for dims in student.contract.dims:
        theirs = SentenceTransformer(str(tmp_path / "out"), truncate_dim=dims)
        np.testing.assert_allclose(
            theirs.encode(TEXTS, prompt_name="query", normalize_embeddings=True),
            student.encode(TEXTS, "query", dims=dims),
            atol=1e-5,
        )
    assert not is_exported(tmp_path / "out")


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_lora_teacher_opens_in_plain_transformers_with_peft_and_in_sentence_transformers(
    decoder, tmp_path, attention
):
    teacher = make_encoder(
        decoder,
        attention=attention,
        precision="float32",
        prompts={"query": "find: ", "passage": ""},
        lora=LORA,
    ).eval()
    for name, weight in teacher.named_parameters():
        if "lora_B" in name:  # which begins at zero
            torch.nn.init.normal_(weight, std=0.1)
    expected = teacher.encode(TEXTS, "query")
    save_encoder(teacher, tmp_path / "teacher")

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
    passage_vectors = teacher.encode(TEXTS, "passage")
    assert abs(passage_vectors - expected).max() > 0.01, "the prompt is seen"

    export_encoder(
        load_encoder(tmp_path / "teacher"),
        "sentence-transformers",
        tmp_path / "merged",
        TEXTS_IN_BOTH_ROLES,
    )
    theirs = SentenceTransformer(str(tmp_path / "merged"))
    np.testing.assert_allclose(theirs.encode_query(TEXTS), expected, atol=1e-5)


def test_what_sentence_transformers_cannot_express_is_refused(decoder, tmp_path):
    model = make_encoder(decoder, pooling="last", echo=True, precision="float32")
    with pytest.raises(UserError, match="echo"):
        export_encoder(model, "sentence-transformers", tmp_path / "out", TEXTS_IN_BOTH_ROLES)


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError), atomic_folder(tmp_path / "out") as partial:
        partial.mkdir()
        raise UserError("a format", "misses its floor", "Take another")
    assert list(tmp_path.iterdir()) == []


def test_formats_are_those_that_a_recipe_may_name():
    assert set(get_args(ExportFormat)) == set(FORMATS)
