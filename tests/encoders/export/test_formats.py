import json
from typing import get_args

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from transformers import (
    AutoModel,
    AutoTokenizer,
    DistilBertConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
)

from stillroom.config.recipe import ExportFormat
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.export import int8
from stillroom.encoders.export.formats import FORMATS, atomic_folder, export_encoder
from stillroom.encoders.export.graph import input_names
from stillroom.encoders.export.runtimes import (
    ONNX_FILE,
    ExportedEncoder,
    is_exported,
    open_onnx,
)
from stillroom.encoders.export.tokenizer_files import padding_side
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.errors import UserError
from stillroom.evaluation.fidelity import compare_encoders, texts_with_roles
from support.make_encoder import make_encoder
from support.tiny_models import VOCABULARY, byte_pair_tokenizer, word_piece_tokenizer

TEXTS = ["one", "another text, and a longer one", "third " * 30]
TEXTS_IN_BOTH_ROLES = [(text, role) for text in TEXTS for role in ("query", "passage")]
LORA = LoraOptions(rank=4, alpha=8)
AXES = ["batch_size", "sequence_length"]  # as Optimum calls them


@pytest.fixture(scope="module")
def student(encoder):
    model = make_encoder(
        encoder, precision="float32", prompts={"query": "find: ", "passage": ""}, projection_dims=96
    ).eval()
    model.contract = model.contract.model_copy(update={"dims": (96, 32)})
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT
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


@pytest.fixture(scope="module")
def teacher_export(decoder, tmp_path_factory):
    """A trained adapter, merged; and the folder of its ONNX export."""
    folder = tmp_path_factory.mktemp("teacher")
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
    save_encoder(trained, folder / "adapter")
    merged = load_encoder(folder / "adapter")
    export_encoder(merged, "onnx", folder / "onnx", TEXTS_IN_BOTH_ROLES)
    return merged, folder / "onnx"


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
def test_a_decoder_s_merged_adapter_is_exported_bidirectional(teacher_export):
    merged, folder = teacher_export
    np.testing.assert_allclose(
        ExportedEncoder(folder).encode(TEXTS, "query"), merged.encode(TEXTS, "query"), atol=1e-5
    )


@pytest.mark.parametrize("length", [1, 3, 64, 128])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_graph_takes_any_batch_in_plain_onnxruntime(student, onnx, teacher_export, count, length):
    texts = [
        Tokens(list(range(5 + row, 5 + row + max(1, length - 2 * row)))) for row in range(count)
    ]
    for (encoder, folder), side in (((student, onnx), "right"), (teacher_export, "left")):
        batch = pad(texts, encoder.pad_id, side=side)
        session = InferenceSession(folder / ONNX_FILE)
        assert all(given.shape == AXES for given in session.get_inputs())
        inputs = {"input_ids": batch.ids_bl.numpy(), "attention_mask": batch.mask_bl.numpy()}
        if encoder is student:
            inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        states, vectors = session.run(["last_hidden_state", "sentence_embedding"], inputs)
        assert states.shape == (count, length, 64) and not np.isnan(states).any()
        alone = np.concatenate([encoder.encode_batch([text]) for text in texts])
        np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_the_tokenizer_s_files_alone_give_a_graph_its_inputs(student, onnx, teacher_export):
    for encoder, folder in ((student, onnx), teacher_export):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert not json.loads((folder / "tokenizer.json").read_text())["truncation"]
        texts = [*TEXTS, "over-long " * 200]
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        session = InferenceSession(folder / ONNX_FILE)
        states, vectors = session.run(None, dict(batch))
        np.testing.assert_allclose(vectors, encoder.encode(texts, "passage"), atol=1e-5)
    last = states[:, -1]  # which is the end of every text, as the padding is before it
    np.testing.assert_allclose(
        last / np.linalg.norm(last, axis=1, keepdims=True), vectors, atol=1e-5
    )


def test_a_graph_has_a_pool_mask_only_where_the_contract_pools_a_part(encoder, decoder):
    given = ("input_ids", "attention_mask")
    student = make_encoder(encoder, pool_prompt=False, pooling="cls")
    assert input_names(student) == given, "CLS is before the prompt"
    student.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert input_names(student) == (*given, "token_type_ids")
    teacher = make_encoder(decoder)
    teacher.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert input_names(teacher) == given, "a Llama has no token types, whatever its tokenizer says"
    for part in ({"pool_prompt": False}, {"echo": True}):
        assert input_names(make_encoder(decoder, **part)) == (*given, "pool_mask")


def test_texts_are_padded_where_every_program_finds_the_pooled_token(encoder, decoder):
    assert padding_side(make_encoder(decoder, pooling="last")) == "left"
    assert padding_side(make_encoder(decoder, pooling="mean")) == "right"
    assert padding_side(make_encoder(encoder, pooling="last")) == "right", (
        "it has learned positions"
    )


def bert_like(config):
    return lambda folder: (
        AutoModel.from_config(config).save_pretrained(folder),
        word_piece_tokenizer().save_pretrained(folder),
    )


def decoder_like(config):
    return lambda folder: (
        AutoModel.from_config(config).save_pretrained(folder),
        byte_pair_tokenizer().save_pretrained(folder),
    )


SIZES = {"vocab_size": VOCABULARY + 8, "hidden_size": 32, "intermediate_size": 64,
         "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 2}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16}
GEMMA = GROUPED | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}
OTHERS = {
    "a window": (decoder_like(MistralConfig(**GROUPED, sliding_window=12)), {}),
    "Gemma": (decoder_like(Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True)), {}),
    "ModernBERT": (
        bert_like(ModernBertConfig(**SIZES, local_attention=12, cls_token_id=2, sep_token_id=3)),
        {"pooling": "cls"},
    ),
    "DistilBERT": (bert_like(DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4,
                                              hidden_dim=64)), {}),
    "echo": (decoder_like(LlamaConfig(**GROUPED)), {"echo": True, "pooling": "last"}),
    "no prompt": (decoder_like(LlamaConfig(**GROUPED)), {"pool_prompt": False}),
    "latents": (
        decoder_like(LlamaConfig(**GROUPED)),
        {"pooling": "latent", "latents": {"count": 4, "heads": 2}},
    ),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("kind", OTHERS)
def test_onnx_expresses_every_contract_and_window(tmp_path, kind):
    save, options = OTHERS[kind]
    torch.manual_seed(0)
    save(tmp_path / "base")
    prompts = {"query": "find: ", "passage": ""}
    encoder = make_encoder(tmp_path / "base", precision="float32", prompts=prompts, **options)
    encoder.eval()
    export_encoder(encoder, "onnx", tmp_path / "onnx", TEXTS_IN_BOTH_ROLES)
    exported = ExportedEncoder(tmp_path / "onnx")
    for role in ("query", "passage"):
        np.testing.assert_allclose(
            exported.encode(TEXTS, role), encoder.encode(TEXTS, role), atol=1e-5
        )
    modules = tmp_path / "onnx" / "modules.json"
    assert modules.exists() is (kind not in ("echo", "latents", "no prompt"))


def test_a_published_folder_with_graphs_beside_its_weights_is_not_an_export(encoder, tmp_path):
    save_encoder(make_encoder(encoder), tmp_path / "published")
    (tmp_path / "published" / "onnx").mkdir()
    (tmp_path / "published" / ONNX_FILE).touch()
    assert not is_exported(tmp_path / "published")


@pytest.mark.parametrize("quantise", [int8.quantise_dynamic, int8.quantise_static])
def test_int8_leaves_as_few_nodes_in_float_as_its_floor_allows(
    student, onnx, sets, tmp_path, monkeypatch, quantise
):
    graph = tmp_path / "quantised.onnx"
    sample = int8.CalibrationSample.draw(student, texts_with_roles(sets), 64)
    unrestricted = quantise(onnx / ONNX_FILE, graph, sample)
    lowest = sample.cosines(open_onnx(graph)).min()
    assert unrestricted["float"] == [] and int8.MIN_COSINE < lowest < 0.99999
    # A floor so high that something has to stay in float.
    monkeypatch.setattr(int8, "MIN_COSINE", lowest + 0.3 * (1 - lowest))
    details = quantise(onnx / ONNX_FILE, graph, sample)
    assert 0 < len(details["float"]) < details["quantised"]
    forward = open_onnx(graph)
    assert sample.cosines(forward).min() >= int8.MIN_COSINE
    if quantise is int8.quantise_static:  # the dynamic ranges depend on the batch
        tokens = student.prompter(TEXTS, "query")
        batched = forward(pad(tokens, student.pad_id))[:1]
        np.testing.assert_allclose(forward(pad(tokens[:1], student.pad_id)), batched, atol=1e-5)


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


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError), atomic_folder(tmp_path / "out") as partial:
        partial.mkdir()
        raise UserError("a format", "misses its floor", "Take another")
    assert list(tmp_path.iterdir()) == []


def test_formats_are_those_that_a_recipe_may_name():
    assert set(get_args(ExportFormat)) == set(FORMATS)
