"""Every supported architecture attends as the contract says, whatever the padding."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    GPTNeoConfig,
    GPTNeoModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from stillroom.encoders.files.pretrained import load_backbone
from stillroom.encoders.tokens.batch import pad
from stillroom.errors import UserError
from support.make_encoder import make_encoder
from support.tiny_models import VOCABULARY, byte_pair_tokenizer, word_piece_tokenizer

WINDOW = 4  # tokens; every text below is longer
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2}
ONE_WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3}

DECODERS = {
    "llama": lambda: LlamaModel(LlamaConfig(**GROUPED)),
    "mistral": lambda: MistralModel(MistralConfig(**GROUPED, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**GROUPED)),
    "qwen2_windowed": lambda: Qwen2Model(
        Qwen2Config(**GROUPED, use_sliding_window=True, **ONE_WINDOWED)
    ),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**GROUPED)),
    "gemma": lambda: GemmaModel(GemmaConfig(**GROUPED)),
    "gemma2": lambda: Gemma2Model(Gemma2Config(**GROUPED, **ONE_WINDOWED)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**GROUPED, **ONE_WINDOWED)),
}
ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SIZES)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(
            **SIZES, **SPECIAL, eos_token_id=3, local_attention=WINDOW, global_attn_every_n_layers=2
        )
    ),
}
KINDS = [(name, attention) for name in DECODERS for attention in ("bidirectional", "causal")]
KINDS += [(name, "bidirectional") for name in ENCODERS]
TEXTS = ["one two three four five six seven eight nine ten", "a text that is much longer " * 3, "x"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """Architecture → a folder with a tiny random model of it."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("models") / name
            torch.manual_seed(0)
            {**DECODERS, **ENCODERS}[name]().save_pretrained(folders[name])
            tokenizer = byte_pair_tokenizer() if name in DECODERS else word_piece_tokenizer()
            if name == "mpnet":
                tokenizer.pad_token = "[UNK]"  # MPNet pads with id 1, whatever its config says
            tokenizer.save_pretrained(folders[name])
        return folders[name]

    return folder


def build_encoder(folder, attention, pooling="mean"):
    return make_encoder(folder, attention=attention, pooling=pooling, precision="float32").eval()


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize(("name", "attention"), KINDS)
@pytest.mark.promise("attention")
def test_the_first_state_knows_the_last_token_if_and_only_if_bidirectional(
    model_folder, name, attention, padding
):
    model = build_encoder(model_folder(name), attention, pooling="cls")
    vectors = []
    for last in ("ten", "six"):
        texts = [TEXTS[0].replace("ten", last), *(TEXTS[1:2] if padding else [])]
        tokens = model.prompter(texts, "passage")
        assert len(tokens[0].ids) > 2 * WINDOW
        batch = pad(tokens, model.pad_id, side=padding or "right")
        assert bool(batch.mask_bl.all()) is (padding is None)
        vectors.append(model(batch)[0])
    assert torch.equal(*vectors) is (attention == "causal")


@pytest.mark.parametrize(("name", "attention"), KINDS)
@pytest.mark.promise("vectors")
def test_a_vector_is_the_same_alone_and_beside_others_padded_on_either_side(
    model_folder, name, attention
):
    model = build_encoder(model_folder(name), attention)
    single = np.concatenate([model.encode([text], "passage") for text in TEXTS])
    np.testing.assert_allclose(model.encode(TEXTS, "passage"), single, atol=2e-6)
    # Only BERT counts positions from the start of the row, padding included: hence `pad` pads on
    # the right by default.
    if name != "bert":
        left_padded = model(pad(model.prompter(TEXTS, "passage"), model.pad_id, side="left"))
        np.testing.assert_allclose(left_padded.detach(), single, atol=2e-6)


@pytest.mark.promise("attention")
def test_a_bidirectional_mistral_sees_beyond_the_window_in_its_first_layer(model_folder):
    ids = torch.arange(5, 25)[None]
    changed_ids = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    backbone = load_backbone(model_folder("mistral"), "bidirectional").eval()
    backbone.layers = backbone.layers[:1]
    first, second = (backbone(input_ids=i).last_hidden_state[0, 0] for i in (ids, changed_ids))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("name", "model"), [(n, type(f()).__name__) for n, f in ENCODERS.items()])
def test_causal_attention_in_an_encoder_is_refused_by_name(model_folder, name, model):
    with pytest.raises(UserError, match=f"attention: causal: has no effect on {model}"):
        build_encoder(model_folder(name), "causal")


def test_a_decoder_that_cannot_look_ahead_is_refused_by_name(tmp_path):
    GPTNeoModel(
        GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
            attention_types=[[["global", "local"], 1]],
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    byte_pair_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="bidirectional: has no effect on GPTNeoModel"):
        build_encoder(tmp_path, "bidirectional")
    assert build_encoder(tmp_path, "causal").contract.attention == "causal"


def test_a_model_whose_attention_depends_on_padding_is_refused_by_name(tmp_path):
    # Without padding transformers passes no mask to the kernel, which then uses only this flag.
    BertModel(BertConfig(**SIZES, is_causal=True)).save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BertModel: attends in one way with padding"):
        build_encoder(tmp_path, "bidirectional")
