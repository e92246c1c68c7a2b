"""Tiny transformers and tokenizers of the kinds that published embedders have: head sizes, windows,
positions, biases, and what stands around a text.
"""

import json
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from support import tiny_models
from support.tiny_models import VOCABULARY

HIDDEN = 64
WINDOW = 12  # tokens; less than most texts have

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
GROUPED |= {"pad_token_id": 2}
ROBERTA = {**SIZES, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


# --- tokenizers -----------------------------------------------------------------------------------


def byte_pair(template: str, names: dict[str, str], **options: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE with special tokens of these names, in the place of <s>, </s> and <pad>."""
    tokenizer = tiny_models.byte_pair_tokenizer(add_bos=False)
    content = tokenizer.backend_tokenizer.to_str()
    for old, new in names.items():
        content = content.replace(json.dumps(old), json.dumps(new))
    backend = type(tokenizer.backend_tokenizer).from_str(content)
    tokens = {token: backend.token_to_id(token) for token in template.split() if token != "$A"}
    if tokens:
        backend.post_processor = TemplateProcessing(
            single=template, special_tokens=list(tokens.items())
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=256, **options)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """As Qwen3-Embedding's: the template ends in the padding token, and EOS is another."""
    end, eos = "<|endoftext|>", "<|im_end|>"
    names = {"</s>": eos, "<pad>": end}
    return byte_pair(f"$A {end}", names, eos_token=eos, pad_token=end, padding_side="left")


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """As E5-mistral's: <s> alone, though tokenizer_config.json asks for </s>, the padding, too."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return byte_pair("<s> $A", {}, **named, padding_side="left")


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 3's: a beginning alone."""
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    named = {"bos_token": bos, "eos_token": eos, "pad_token": eos}
    return byte_pair(f"{bos} $A", {"<s>": bos, "</s>": eos}, **named)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """As Gemma's in EmbeddingGemma: a beginning and an end."""
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return byte_pair("<bos> $A <eos>", {"<s>": "<bos>", "</s>": "<eos>"}, **named)


def modern_bert_tokenizer() -> PreTrainedTokenizerFast:
    """As ModernBERT's: byte-level BPE between CLS and SEP."""
    names = {"<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]"}
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return byte_pair("[CLS] $A [SEP]", names, **named)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """As T5's: an end alone."""
    tokenizer = tiny_models.unigram_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return tokenizer


# --- transformers ---------------------------------------------------------------------------------


def qwen3() -> Any:
    """Heads wider than hidden size / heads; tied embeddings."""
    return Qwen3Model(Qwen3Config(**GROUPED, head_dim=32, tie_word_embeddings=True))


def qwen2() -> Any:
    """Biases on q, k and v; a window that is switched off."""
    return Qwen2Model(Qwen2Config(**GROUPED, use_sliding_window=False, sliding_window=WINDOW))


def mistral() -> Any:
    """A causal window on every layer."""
    return MistralModel(MistralConfig(**GROUPED, sliding_window=WINDOW))


def embedding_gemma() -> Any:
    """Bidirectional by its own option, with windows on all layers but the last; one key for all."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    sizes = {**GROUPED, "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 32}
    return Gemma3TextModel(
        Gemma3TextConfig(
            **sizes, layer_types=kinds, sliding_window=WINDOW, use_bidirectional_attention=True,
            query_pre_attn_scalar=32,
        )
    )  # fmt: skip


def gemma2() -> Any:
    """Causal, with a window on every second layer."""
    return Gemma2Model(Gemma2Config(**GROUPED, head_dim=32, sliding_window=WINDOW))


def llama() -> Any:
    """Scaled rotary positions, as Llama 3.1 and 3.2 have."""
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaModel(LlamaConfig(**GROUPED, head_dim=32, rope_parameters=rope))


def bert() -> Any:
    """Absolute positions, two token types."""
    return BertModel(BertConfig(**SIZES), add_pooling_layer=False)


def xlm_roberta() -> Any:
    """Positions that begin behind the padding's id."""
    return XLMRobertaModel(XLMRobertaConfig(**ROBERTA), add_pooling_layer=False)


def mpnet() -> Any:
    """Relative positions beside absolute ones."""
    return MPNetModel(MPNetConfig(**ROBERTA), add_pooling_layer=False)


def distilbert() -> Any:
    """Sizes under other names; no token types."""
    return DistilBertModel(
        DistilBertConfig(vocab_size=VOCABULARY, dim=HIDDEN, hidden_dim=128, n_layers=2, n_heads=4)
    )


def modern_bert() -> Any:
    """Windows on all layers but each second one."""
    return ModernBertModel(
        ModernBertConfig(
            **SIZES, local_attention=WINDOW, global_attn_every_n_layers=2, bos_token_id=0,
            cls_token_id=0, eos_token_id=1, sep_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip


def nomic_bert() -> Any:
    """Rotary positions, gated feed-forward."""
    return NomicBertModel(NomicBertConfig(**SIZES), add_pooling_layer=False)


def t5() -> Any:
    """The encoder alone; relative positions, no scaling of attention."""
    return T5EncoderModel(
        T5Config(
            vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            pad_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
