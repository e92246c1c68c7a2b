"""What is exported for sentence-transformers gives the same vectors there, or is refused."""

import json

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from stillroom.encoders.contract import ProjectionLayer
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export.formats import export_encoder
from stillroom.encoders.export.runtimes import is_exported
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.layers.projection import Projection
from stillroom.errors import UserError
from support.make_encoder import make_encoder
from support.tiny_models import VOCABULARY, byte_pair_tokenizer

TEXTS = ["one", "another text, and a longer one", "naïve 漢字", "third " * 30, "cut " * 90]
LORA = LoraOptions(rank=4, alpha=8)
PROMPTS = {"query": "Find what answers this.\n", "passage": ""}


def export(encoder, folder, texts=TEXTS):
    export_encoder(encoder, "sentence-transformers", folder, [(text, "query") for text in texts])
    return SentenceTransformer(str(folder), device="cpu")


def assert_same_vectors(theirs, ours, texts=TEXTS):
    for encode, role in ((theirs.encode_query, "query"), (theirs.encode_document, "passage")):
        expected = ours.encode(texts, role)
        vectors = encode(texts)
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((vectors * expected).sum(1) / norms).min() > 0.9999
        np.testing.assert_allclose(vectors, expected, atol=1e-4)


def teacher(decoder, **fields):
    """A trained teacher: an adapter beside a base, texts cut at 48 tokens."""
    encoder = make_encoder(decoder, precision="float32", max_tokens=48, lora=LORA, **fields)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:  # which begins at zero
            torch.nn.init.normal_(weight, std=0.1)
    return encoder.eval()


@pytest.mark.promise("vectors")
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("pooling", "pool_prompt"),
    [("last", True), ("mean", True), ("mean", False), ("weighted_mean", True)],
)
def test_a_decoder_teacher_that_ends_in_eos_opens_with_its_adapter_merged(
    decoder, tmp_path, attention, pooling, pool_prompt
):
    trained = teacher(
        decoder, attention=attention, pooling=pooling, pool_prompt=pool_prompt, append_eos=True,
        prompts=PROMPTS,
    )  # fmt: skip
    save_encoder(trained, tmp_path / "teacher")
    theirs = export(load_encoder(tmp_path / "teacher"), tmp_path / "exported")
    assert_same_vectors(theirs, trained)
    ids = theirs.tokenize(["cut " * 90])["input_ids"][0]
    assert len(ids) == 48 and ids[-1] == theirs.tokenizer.eos_token_id


# Qwen2's tokenizer adds a token of its own.
SIZES = {
    "vocab_size": VOCABULARY + 8, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GEMMA = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
DECODERS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralModel(MistralConfig(**SIZES, sliding_window=16)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**SIZES, **GEMMA)),
}


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_decoder_made_bidirectional_opens_bidirectional(tmp_path, architecture):
    torch.manual_seed(0)
    DECODERS[architecture]().save_pretrained(tmp_path / "base")
    byte_pair_tokenizer().save_pretrained(tmp_path / "base")
    ours = make_encoder(
        tmp_path / "base", attention="bidirectional", pooling="last", append_eos=True,
        precision="float32",
    ).eval()  # fmt: skip
    assert_same_vectors(export(ours, tmp_path / "out"), ours)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["is_causal"] is False, "which transformers and vLLM read"
    # text-embeddings-inference reads the other name. Gemma's own field changes its windows, too.
    assert config["use_bidirectional_attention"] is (architecture != "gemma3")
    causal = make_encoder(
        tmp_path / "out", attention="causal", pooling="last", precision="float32"
    ).eval()
    assert_same_vectors(export(causal, tmp_path / "causal"), causal)
    config = json.loads((tmp_path / "causal" / "config.json").read_text())
    assert config["is_causal"] and not config["use_bidirectional_attention"]


def test_gemma_s_own_bidirectional_windows_outlive_any_number_of_exports(tmp_path):
    torch.manual_seed(0)
    config = Gemma3TextConfig(**SIZES, **GEMMA, use_bidirectional_attention=True)
    Gemma3TextModel(config).save_pretrained(tmp_path / "0")
    byte_pair_tokenizer().save_pretrained(tmp_path / "0")
    first = make_encoder(tmp_path / "0", precision="float32").eval()
    save_encoder(first, tmp_path / "1")
    theirs = export(load_encoder(tmp_path / "1"), tmp_path / "2")
    export(load_encoder(tmp_path / "2"), tmp_path / "3")
    files = [json.loads((tmp_path / n / "config.json").read_text()) for n in "0123"]
    assert {file["sliding_window"] for file in files} == {8}
    assert_same_vectors(theirs, first)
    assert_same_vectors(SentenceTransformer(str(tmp_path / "3"), device="cpu"), first)


def with_layers(base, layers, **contract):
    """A base with random layers behind its pooling."""
    projection = Projection(64, layers)
    for weight in projection.parameters():
        torch.nn.init.normal_(weight)
    fields = {"projection": projection.spec, "dims": (projection.out_dims,), **contract}
    return Encoder(
        base.contract.model_copy(update=fields), base.tokenizer, base.backbone, projection
    ).eval()


def test_layers_cut_similarity_and_prompts_survive_the_way_there_and_back(encoder, tmp_path):
    ours = with_layers(
        make_encoder(encoder, precision="float32", prompts={"query": "find: ", "passage": ""}),
        [
            ProjectionLayer(dims=48, bias=True, activation="tanh"),
            ProjectionLayer(kind="layer_norm", dims=48),
            ProjectionLayer(dims=40, activation="gelu"),
        ],
        dims=(24,), similarity="dot", normalise=False,
        named_prompts={"s2s": "alike: ", "passage": "another role's"},
    )  # fmt: skip
    theirs = export(ours, tmp_path / "out")
    assert_same_vectors(theirs, ours)
    assert theirs.similarity_fn_name == "dot"
    assert theirs.prompts == {"s2s": "alike: ", "query": "find: ", "document": ""}
    theirs.save(str(tmp_path / "back"))
    back = load_encoder(tmp_path / "back")
    for role in ("query", "passage"):
        np.testing.assert_allclose(back.encode(TEXTS, role), ours.encode(TEXTS, role), atol=1e-4)
    contract, expected = back.contract, ours.contract
    for field in ("projection", "dims", "similarity", "normalise", "prompts", "max_tokens"):
        assert getattr(contract, field) == getattr(expected, field), field
    assert contract.named_prompts["s2s"] == "alike: "


CAPITALS = ["ONE Text", "one text", "ÀÉ Ü", "plain"]


def test_a_default_prompt_and_lower_case_survive_the_way_here_and_there_again(encoder, tmp_path):
    save_encoder(make_encoder(encoder, precision="float32"), tmp_path / "first")
    first = SentenceTransformer(str(tmp_path / "first"), device="cpu")
    first.prompts, first.default_prompt_name = {"s2p": "find: "}, "s2p"
    first.save(str(tmp_path / "published"))
    options = tmp_path / "published" / "sentence_bert_config.json"
    options.write_text(json.dumps({**json.loads(options.read_text()), "do_lower_case": True}))
    first = SentenceTransformer(str(tmp_path / "published"), device="cpu")
    ours = load_encoder(tmp_path / "published")
    theirs = export(ours, tmp_path / "out", CAPITALS)
    assert theirs.default_prompt_name == "s2p"
    np.testing.assert_allclose(theirs.encode(CAPITALS), first.encode(CAPITALS), atol=1e-5)
    assert_same_vectors(theirs, ours, CAPITALS)


def test_the_library_cuts_vectors_to_the_sizes_of_the_contract(encoder, tmp_path):
    ours = with_layers(make_encoder(encoder, precision="float32"), [ProjectionLayer(dims=96)])
    ours.contract = ours.contract.model_copy(update={"dims": (96, 32)})
    export(ours, tmp_path / "out")
    for dims in ours.contract.dims:
        theirs = SentenceTransformer(str(tmp_path / "out"), truncate_dim=dims, device="cpu")
        np.testing.assert_allclose(
            theirs.encode_query(TEXTS, normalize_embeddings=True),
            ours.encode(TEXTS, "query", dims=dims),
            atol=1e-5,
        )
    assert not is_exported(tmp_path / "out"), "it has weights, and no graph"


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_an_adapter_that_we_trained_opens_in_plain_transformers_with_peft(
    decoder, tmp_path, attention
):
    trained = teacher(decoder, attention=attention, prompts={"query": "find: ", "passage": ""})
    expected = trained.encode(TEXTS, "query")
    save_encoder(trained, tmp_path / "teacher")
    adapter = PeftConfig.from_pretrained(str(tmp_path / "teacher" / "adapter"))
    config = AutoConfig.from_pretrained(adapter.base_model_name_or_path)
    config.is_causal = attention == "causal"
    base = AutoModel.from_pretrained(adapter.base_model_name_or_path, config=config)
    model = PeftModel.from_pretrained(base, str(tmp_path / "teacher" / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    batch = tokenizer(
        [f"find: {text}" for text in TEXTS],
        padding=True, truncation=True, max_length=48, return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        states = model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    counted = batch["attention_mask"][..., None]
    vectors = (states * counted).sum(1) / counted.sum(1)
    vectors = torch.nn.functional.normalize(vectors, dim=-1).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert abs(trained.encode(TEXTS, "passage") - expected).max() > 0.01, "the prompt is seen"


INEXPRESSIBLE = {
    "echo": {"pooling": "last", "echo": True},
    "latent attention": {"pooling": "latent", "latents": {"count": 4, "heads": 2}},
    "whose end the tokenizer joins to the text": {
        "pool_prompt": False, "prompts": {"query": "find: ", "passage": ""},
    },
    "weighted_mean without the prompt": {
        "pool_prompt": False, "prompts": PROMPTS, "pooling": "weighted_mean",
    },
}  # fmt: skip


@pytest.mark.parametrize("reason", INEXPRESSIBLE)
def test_what_the_library_cannot_express_is_refused_by_name(decoder, tmp_path, reason):
    model = make_encoder(decoder, precision="float32", **INEXPRESSIBLE[reason])
    with pytest.raises(UserError, match=reason):
        export(model, tmp_path / "out")
    save_encoder(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "modules.json").exists(), "ours opens it, the library must not"
    load_encoder(tmp_path / "saved").encode(TEXTS, "query")


def test_vectors_that_are_cut_before_they_are_normalised_for_dot_are_refused(encoder, tmp_path):
    model = make_encoder(encoder, precision="float32")
    model.contract = model.contract.model_copy(update={"dims": (32,), "similarity": "dot"})
    with pytest.raises(UserError, match="it normalises first"):
        export(model, tmp_path / "out")


def test_a_prompt_before_cls_pooling_makes_no_difference_there_either(encoder, tmp_path):
    ours = make_encoder(
        encoder, precision="float32", pooling="cls", pool_prompt=False, prompts=PROMPTS
    ).eval()
    assert_same_vectors(export(ours, tmp_path / "out"), ours)
