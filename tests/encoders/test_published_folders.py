"""Published embedders, small and with random weights, give the vectors that sentence-transformers
gives: the proof of jobs/recipes/README.md's table."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    Gemma3TextConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    XLNetConfig,
    XLNetModel,
)

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.encoders.files.save import merge_adapters, save_encoder
from stillroom.encoders.files.sentence_transformers import read_modules
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.layers.packing import pack_attention, supports_packing
from stillroom.encoders.library_encoder import LibraryEncoder
from stillroom.encoders.tokens.batch import pad_labelled
from stillroom.errors import UserError
from support.make_encoder import make_encoder
from support.published_folders import (
    MAX_TOKENS,
    OWN_CODE,
    PUBLISHED,
    STATIC,
    PublishedModel,
    as_an_older_library_writes,
    change_json,
    write_any,
    write_published_folder,
)
from support.published_shapes import GROUPED, WINDOW, embedding_gemma, qwen_tokenizer

# Of mixed lengths in one batch, the longest cut.
TEXTS = [
    "x",
    "A SHORT Text",
    "naïve café: ünïcödé, 漢字 and 🙂",
    "another text, which has quite a few more words than the first one has " * 12,
    "Some words of a sentence that has a comma, and an end.",
]
GEMMA = "google/embeddinggemma-300m"
E5_MISTRAL = "intfloat/e5-mistral-7b-instruct"
PACKABLE = [name for name, model in PUBLISHED.items() if "mpnet" not in name]
PACKABLE = [name for name in PACKABLE if "gemma2" not in name and "t5" not in name]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Name → its folder, written once."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = write_any(name, tmp_path_factory.mktemp("models") / "model")
        return folders[name]

    return folder


def role_prompt(model, role):
    """The prompt that a model's authors give a role."""
    names = ("query",) if role == "query" else ("document", "passage")
    return next((model.prompts[name] for name in names if model.prompts.get(name)), "")


def library_model(folder, **options):
    """The folder as sentence-transformers opens it on this machine."""
    return SentenceTransformer(str(folder), device="cpu", **options)


def library_vectors(model, texts, prompt, *, normalise=True):
    """The library's vectors, of unit length if ours are."""
    vectors = model.encode(texts, prompt=prompt, convert_to_numpy=True).astype(np.float32)
    return unit(vectors) if normalise else vectors


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_same(ours, theirs):
    """Cosines above .9999, and lengths equal."""
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in (ours, theirs)]
    np.testing.assert_allclose(*lengths, rtol=1e-4)
    assert (unit(ours) * unit(theirs)).sum(1).min() > 0.9999


def with_its_end(name, library):
    """transformers drops E5-mistral's end of a text, which its tokenizer_config.json asks for."""
    if name == E5_MISTRAL:
        library.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return library


# --- our own forward --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.promise("vectors")
def test_a_published_model_encodes_as_sentence_transformers_does(published, name):
    model, folder = PUBLISHED[name], published(name)
    ours, library = load_encoder(folder), with_its_end(name, library_model(folder))
    contract = ours.contract
    assert contract.similarity == model.similarity
    assert contract.normalise is (model.similarity == "cosine")
    assert contract.max_tokens == MAX_TOKENS
    for role in ("query", "passage"):
        prompt = role_prompt(model, role)
        assert getattr(contract.prompts, role) == prompt
        vectors = ours.encode(TEXTS, role)
        for side in ("right", "left")[: 1 + model.either_side]:
            library.tokenizer.padding_side = side
            expected = library_vectors(library, TEXTS, prompt, normalise=contract.normalise)
            assert_same(vectors, expected)
    assert any(len(tokens.ids) == MAX_TOKENS for tokens in ours.prompter(TEXTS, "query"))
    for prompt_name, prompt in contract.named_prompts.items():
        expected = library_vectors(library, TEXTS, prompt, normalise=contract.normalise)
        assert_same(ours.encode(TEXTS, "query", prompt=prompt), expected)
        assert library.prompts[prompt_name] == prompt


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.promise("vectors")
def test_a_published_model_gives_the_same_vectors_without_padding(published, name):
    encoder = load_encoder(published(name))
    padded = encoder.encode(TEXTS, "query")
    pack_attention(encoder.backbone)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), padded, atol=5e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_in_bfloat16_is_as_near_to_float32_as_the_library_s(published, name):
    """A number of bfloat16 is off by up to 1/512. Weights that the library rounds give .9997 here;
    ours stay float32 and only products are rounded."""
    folder, model = published(name), PUBLISHED[name]
    options = ContractOptions(precision="bfloat16")
    ours = create_encoder(str(folder), space="s", options=options).eval()
    assert ours.contract.precision == "bfloat16"
    library = with_its_end(name, library_model(folder))
    expected = library_vectors(library, TEXTS, role_prompt(model, "query"))
    assert (unit(ours.encode(TEXTS, "query")) * expected).sum(1).min() > 0.9997


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_older_releases_of_the_library_wrote_describes_the_same_model(name, tmp_path):
    folder = write_any(name, tmp_path / "model")
    newer, older = read_modules(folder), read_modules(as_an_older_library_writes(folder))
    assert older.max_tokens == MAX_TOKENS  # newer releases write it beside the tokenizer
    specs = [m.projection and m.projection.spec for m in (newer, older)]
    assert specs[0] == specs[1]
    same = {"max_tokens": MAX_TOKENS, "projection": None}
    assert dataclasses.replace(newer, **same) == dataclasses.replace(older, **same)


# --- traps ------------------------------------------------------------------------------------


def test_qwen3_embedding_pools_its_template_s_end_which_is_not_eos(published):
    encoder = load_encoder(published("Qwen/Qwen3-Embedding-0.6B"))
    [short, long] = encoder.prompter([TEXTS[0], TEXTS[3]], "query")
    end = encoder.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert (short.ids[-1], long.ids[-1]) == (end, end)
    assert end == encoder.tokenizer.pad_token_id != encoder.tokenizer.eos_token_id
    assert encoder.backbone.layers[0].self_attn.head_dim != 64 // 4


def test_e5_mistral_ends_in_eos_though_the_library_drops_it(published):
    folder = published(E5_MISTRAL)
    encoder, library = load_encoder(folder), library_model(folder)
    start, end = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    for tokens in encoder.prompter(TEXTS, "query"):
        assert (tokens.ids[0], tokens.ids[-1]) == (start, end)
    dropped = library_vectors(library, TEXTS, "")
    assert (encoder.encode(TEXTS, "query") * dropped).sum(1).max() < 0.9
    assert set(encoder.contract.named_prompts) == {"web_search_query", "sts_query"}


def test_embedding_gemma_s_window_is_halved_once_however_often_it_is_saved(published, tmp_path):
    source, library = published(GEMMA), library_model(published(GEMMA))
    prompt = PUBLISHED[GEMMA].prompts["query"]
    expected = library_vectors(library, TEXTS, prompt)
    for number in range(3):
        encoder = load_encoder(source)
        assert encoder.backbone.config.sliding_window == WINDOW // 2 + 1
        assert_same(encoder.encode(TEXTS, "query"), expected)
        source = tmp_path / str(number)
        save_encoder(encoder, source)
        saved = json.loads((source / "config.json").read_text())
        assert saved["sliding_window"] == WINDOW and "is_causal" not in saved
    assert_same(library_vectors(library_model(source), TEXTS, prompt), expected)


def test_embedding_gemma_trained_further_is_saved_with_the_attention_it_had(published, tmp_path):
    for attention in (None, "bidirectional"):
        options = ContractOptions(attention=attention, precision="float32")
        lora = LoraOptions(rank=4, alpha=8)
        encoder = create_encoder(str(published(GEMMA)), space="s", options=options, lora=lora)
        torch.manual_seed(1)
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        expected = encoder.eval().encode(TEXTS, "query")
        folder = tmp_path / str(attention)
        save_encoder(merge_adapters(encoder, {}), folder)
        assert_same(load_encoder(folder).encode(TEXTS, "query"), expected)
        prompt = PUBLISHED[GEMMA].prompts["query"]
        assert_same(library_vectors(library_model(folder), TEXTS, prompt), expected)


def test_a_causal_embedding_gemma_is_refused_by_name(published):
    with pytest.raises(UserError, match="attention: causal: has no effect on Gemma3TextModel"):
        make_encoder(published(GEMMA), attention="causal", pooling=None)


def test_a_decoder_that_is_bidirectional_by_its_config_predicts_no_tokens_causally(published):
    encoder = create_encoder(str(published(GEMMA)), space="s", head=True)
    labelled = encoder.prompter.label_completions([("a prompt", "its completion")], max_tokens=32)
    with pytest.raises(UserError, match="Gemma3TextModel: is bidirectional by its own config"):
        encoder(pad_labelled(labelled, encoder.pad_id))


def test_a_model_of_an_encoder_and_a_decoder_is_refused_as_a_base_by_name(tmp_path):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 1000}
    BartModel(BartConfig(**sizes)).save_pretrained(tmp_path)
    qwen_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder with a decoder, a bart"):
        make_encoder(tmp_path)


def test_a_model_without_a_limit_of_positions_reads_what_its_tokenizer_allows(tmp_path):
    sizes = {"d_model": 64, "n_layer": 1, "n_head": 4, "d_inner": 64, "vocab_size": 1000}
    model = PublishedModel(lambda: XLNetModel(XLNetConfig(**sizes)), qwen_tokenizer)
    folder = write_published_folder(model, tmp_path / "model")
    encoder = load_encoder(folder)
    assert encoder.contract.max_tokens == MAX_TOKENS
    expected = library_vectors(library_model(folder), TEXTS, "")
    assert_same(encoder.encode(TEXTS, "query"), expected)


def test_t5_s_encoder_can_be_cut_and_narrowed_for_a_student(published, tmp_path):
    base = published("sentence-transformers/gtr-t5-base")
    resize = Resize(layers=[0], vocabulary_size=500, texts=TEXTS)
    options = ContractOptions(precision="float32")
    student = create_encoder(str(base), space="s", options=options, resize=resize).eval()
    assert student.contract.architecture == "encoder"
    save_encoder(student, tmp_path)
    again = load_encoder(tmp_path)
    assert_same(again.encode(TEXTS, "query"), student.encode(TEXTS, "query"))
    assert_same(library_vectors(library_model(tmp_path), TEXTS, ""), again.encode(TEXTS, "query"))


TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
WINDOWS = {
    "mistral": (MistralConfig(**GROUPED, sliding_window=WINDOW), "causal"),
    "mistral_not_causal": (
        MistralConfig(**GROUPED, sliding_window=WINDOW, is_causal=False), "bidirectional",
    ),
    "qwen2_max_window_layers": (
        Qwen2Config(
            **GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ), "causal",
    ),
    "qwen2_not_causal": (
        Qwen2Config(**GROUPED, use_sliding_window=True, is_causal=False, **TWO_KINDS),
        "bidirectional",
    ),
    "qwen3_layer_types": (
        Qwen3Config(**GROUPED, head_dim=32, use_sliding_window=True, **TWO_KINDS), "causal",
    ),
    "qwen3_not_causal": (
        Qwen3Config(
            **GROUPED, head_dim=32, use_sliding_window=True, is_causal=False, **TWO_KINDS
        ), "bidirectional",
    ),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=32, **TWO_KINDS), "causal"),
    "gemma3_not_causal": (
        Gemma3TextConfig(**GROUPED, head_dim=32, is_causal=False, **TWO_KINDS), "bidirectional",
    ),
    "gemma3_bidirectional": (embedding_gemma().config, "bidirectional"),
    "gemma3_bidirectional_and_not_causal": (
        Gemma3TextConfig(
            **GROUPED, head_dim=32, is_causal=False, use_bidirectional_attention=True, **TWO_KINDS
        ), "bidirectional",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.promise("attention")
def test_a_window_reaches_as_far_as_the_library_s_padded_or_not(name, tmp_path):
    config, attention = WINDOWS[name]
    model = PublishedModel(lambda: AutoModel.from_config(config), qwen_tokenizer)
    folder = write_published_folder(model, tmp_path / "model")
    expected = library_vectors(library_model(folder), TEXTS, "")
    encoder = load_encoder(folder)
    assert encoder.contract.attention == attention
    assert_same(encoder.encode(TEXTS, "query"), expected)
    save_encoder(encoder, tmp_path / "again")
    assert_same(load_encoder(tmp_path / "again").encode(TEXTS, "query"), expected)
    assert supports_packing(encoder.backbone)
    pack_attention(encoder.backbone)
    assert_same(encoder.encode(TEXTS, "query"), expected)


# --- models that sentence-transformers runs ---------------------------------------------------


@pytest.mark.parametrize("name", OWN_CODE)
def test_a_model_with_its_own_code_is_refused_by_name_and_once_trusted_run_by_the_library(
    published, name
):
    folder, model = published(name), OWN_CODE[name]
    with pytest.raises(UserError, match=r"its own code \(.*modeling_own\..*trust_remote_code"):
        load_encoder(folder)
    ours = load_encoder(folder, trust_remote_code=True)
    assert isinstance(ours, LibraryEncoder)
    library = library_model(folder, trust_remote_code=True)
    for role in ("query", "passage"):
        vectors = ours.encode(TEXTS, role)
        expected = library_vectors(library, TEXTS, role_prompt(model, role))
        assert (unit(vectors) * expected).sum(1).min() > 0.9999


# Modules of their own are the library's to run. NV-Embed's prompt ends in a space, which its
# tokenizer joins to the text's first word: the library then leaves that word out of pooling, too.
TRAINABLE = [name for name, model in OWN_CODE.items() if not model.own_modules]
TRAINABLE.remove("nvidia/NV-Embed-v2")


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_decoder_made_bidirectional_by_its_own_code_can_be_trained_further(
    published, name, tmp_path
):
    folder = published(name)
    encoder = load_encoder(folder, trainable=True, trust_remote_code=True).eval()
    assert encoder.contract.attention == "bidirectional"
    library = library_model(folder, trust_remote_code=True)
    expected = library_vectors(library, TEXTS, role_prompt(OWN_CODE[name], "query"))
    assert_same(encoder.encode(TEXTS, "query"), expected)
    save_encoder(encoder, tmp_path)
    again = load_encoder(tmp_path, trust_remote_code=True)
    assert_same(again.encode(TEXTS, "query"), expected)


def test_a_class_of_transformers_does_not_stand_in_for_a_model_s_own_silently(published, tmp_path):
    """gte-Qwen2 names its class for AutoModel alone, and transformers knows a causal Qwen2."""
    folder = published("Alibaba-NLP/gte-Qwen2-1.5B-instruct")
    assert "AutoConfig" not in json.loads((folder / "config.json").read_text())["auto_map"]
    native = library_model(folder, trust_remote_code=False)
    own = library_model(folder, trust_remote_code=True)
    assert (library_vectors(native, TEXTS, "") * library_vectors(own, TEXTS, "")).sum(1).min() < 0.9
    with pytest.raises(UserError, match="AutoModel is modeling_own.Qwen2Model"):
        make_encoder(folder, pooling=None)


@pytest.mark.parametrize("name", STATIC)
def test_static_embeddings_give_vectors_and_cannot_be_trained(published, name):
    folder = published(name)
    vectors = load_encoder(folder).encode(TEXTS, "passage")
    assert_same(unit(vectors), library_vectors(library_model(folder), TEXTS, ""))
    with pytest.raises(UserError, match="StaticEmbedding"):
        make_encoder(folder, pooling=None)


def test_poolings_whose_prompt_the_library_weighs_otherwise_are_left_to_it(tmp_path):
    """Without the prompt, the library's CLS is the first token behind it, and weights count on."""
    model = PUBLISHED["BAAI/bge-large-en-v1.5"]
    folder = write_published_folder(model, tmp_path / "model")
    change_json(folder / "1_Pooling" / "config.json", {"include_prompt": False})
    encoder = load_encoder(folder)
    assert isinstance(encoder, LibraryEncoder)
    expected = library_vectors(library_model(folder), TEXTS, model.prompts["query"])
    assert_same(unit(encoder.encode(TEXTS, "query")), expected)
