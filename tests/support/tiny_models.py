"""Real models that are small: random weights, two layers, width 64, a real tokenizer."""

import copy
import importlib.metadata
from functools import cache
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from stillroom.encoders.files import random_model

VOCABULARY = 1000


@cache
def training_texts() -> list[str]:
    """Some English to train tokenizers on: the long descriptions of installed packages."""
    names = ("numpy", "torch", "transformers", "ray", "peft")
    return [str(importlib.metadata.metadata(name).get_payload()) for name in names]


_TRAINED: dict[tuple[object, ...], str] = {}


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    """The tokenizer, trained on `training_texts`. Each kind is trained once and then copied."""
    kind = tokenizer.to_str(), type(trainer), trainer.vocab_size, str(trainer.special_tokens)
    if kind not in _TRAINED:
        tokenizer.train_from_iterator(training_texts(), trainer)
        _TRAINED[kind] = tokenizer.to_str()
    return Tokenizer.from_str(_TRAINED[kind])


@cache
def _byte_level_bpe(add_bos: bool) -> PreTrainedTokenizerFast:
    return random_model.byte_level_bpe_tokenizer(training_texts(), VOCABULARY, add_bos=add_bos)


@cache
def _word_piece() -> PreTrainedTokenizerFast:
    return random_model.word_piece_tokenizer(training_texts(), VOCABULARY)


def byte_pair_tokenizer(*, add_bos: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 3's and GPT-2's: byte-level BPE, which adds no end of text itself."""
    return copy.deepcopy(_byte_level_bpe(add_bos))


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: lower-cased word pieces between CLS and SEP."""
    return copy.deepcopy(_word_piece())


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """As RoBERTa's: byte-level BPE between <s> and </s>, with id 1 for padding."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = _trained(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 1,
            special_tokens=ROBERTA_SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(["<mask>"])  # behind the others, as in RoBERTa
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _with_roberta_names(tokenizer)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's: SentencePiece's unigrams between <s> and </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer = _trained(
        tokenizer,
        trainers.UnigramTrainer(
            vocab_size=VOCABULARY - 1,
            special_tokens=ROBERTA_SPECIAL_TOKENS,
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _with_roberta_names(tokenizer)


ROBERTA_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


def _with_roberta_names(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer, with RoBERTa's roles of its special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=256,
    )


def tiny_decoder(folder: Path, *, mistral: bool = False, seed: int = 0) -> Path:
    """A causal language model."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    model = (
        MistralForCausalLM(MistralConfig(**sizes, sliding_window=32))
        if mistral
        else LlamaForCausalLM(LlamaConfig(**sizes))
    )
    model.save_pretrained(folder)
    byte_pair_tokenizer().save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """A BERT without a head, in a folder that does not say how it pools."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    BertModel(config).save_pretrained(folder)
    word_piece_tokenizer().save_pretrained(folder)
    return folder


def tiny_cross_encoder(folder: Path, *, labels: int = 1) -> Path:
    """A BERT that reads two texts and gives a logit per label; the logits are not near 0."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        num_labels=labels,
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    word_piece_tokenizer().save_pretrained(folder)
    return folder
