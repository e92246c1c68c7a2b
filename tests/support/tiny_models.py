"""Real models that are small: random weights, two layers, width 64, a real tokenizer.

`python tests/support/tiny_models.py FOLDER` writes FOLDER/teacher and FOLDER/student for
jobs/recipes/tiny.yaml.
"""

import importlib.metadata
import sys
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

VOCABULARY = 1000


@cache
def _texts() -> list[str]:
    """Some English to train tokenizers on: the long descriptions of installed packages."""
    names = ("numpy", "torch", "transformers", "ray", "peft")
    return [str(importlib.metadata.metadata(name).get_payload()) for name in names]


def byte_pair_tokenizer(*, add_bos: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 3's and GPT-2's: byte-level BPE, without an end that it adds itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=256,
    )


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: lower-cased word pieces between CLS and SEP."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        _texts(),
        trainers.WordPieceTrainer(
            vocab_size=VOCABULARY, special_tokens=special, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=256,
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """As RoBERTa's: byte-level BPE between <s> and </s>, padding in the second place."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 1,
            special_tokens=FOUR,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(["<mask>"])  # behind the model's own, as there
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _of_four(tokenizer)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's: SentencePiece's unigrams between <s> and </s>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        _texts(),
        trainers.UnigramTrainer(
            vocab_size=VOCABULARY - 1, special_tokens=FOUR, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _of_four(tokenizer)


FOUR = ["<s>", "<pad>", "</s>", "<unk>"]


def _of_four(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
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
    """A BERT without a head, and nothing that says how it pools."""
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
    """A BERT that reads two texts and gives a logit a label, of no small size."""
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


if __name__ == "__main__":
    print(tiny_decoder(Path(sys.argv[1]) / "teacher"))
    print(tiny_encoder(Path(sys.argv[1]) / "student"))
