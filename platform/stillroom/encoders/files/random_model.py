"""Tiny models with random weights and a real tokenizer, made from their names: no download.

`random:llama`, `random:mistral` and `random:bert`, with sizes such as
`random:llama:layers=4,hidden=128`. The same name gives the same files on every machine: weights
and training text come from integers of a seeded generator, never from torch's, whose normal
numbers differ between processors.
"""

import itertools
import string
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import UserError

RANDOM = "random:"
VERSION = 1  # raise it when the same name would give other weights or tokens
MAX_LENGTH = 256  # tokens of a text
FAMILIES = ("llama", "mistral", "bert")
WEIGHT_STD = 0.02  # as transformers initialises Llama and BERT

# What tokenizers are trained on: common English, and the vocabulary of documentation.
VOCABULARY_TEXT = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will no more if
out so up said what its about than into them can only other time new some could these two may first
then do any like my now over such our man me even most made after also well must before many through
back years where much your way down should because long each just state those people too little good
world make very year still work own see men life get here between both being under never day same
another know while last might great old off come since go against came right used take three small
house found place number part large water school given almost different system second point example
question answer city country history language letter music animal plant river mountain science
energy light temperature pressure machine market money price government law medicine disease patient
treatment blood heart brain cell protein book paper report study research result method theory
problem solution data model training value function return returns parameter parameters array arrays
shape type types string strings integer float object objects class instance default optional raise
raises error index element elements list dictionary key keys length input output file files path
name names argument arguments call called create compute computes given matrix vector vectors axis
dimension dimensions mean sum product minimum maximum random sample samples distribution probability
polynomial coefficient coefficients series degree order sort sorted search find query document
documentation describe description specified whether contains following according representation
information international development university understanding communication relationship
organisation environment experience important significant
"""

WORDS = VOCABULARY_TEXT.split()
SUFFIXES = ("", "", "", "", "s", "ed", "ing", "er", "ly", "ment")


@dataclass(frozen=True)
class RandomModel:
    """The model that a `random:` name describes.

    Attributes:
        layers, hidden, heads: of the transformer; `hidden` must be a multiple of 2 × `heads`.
        vocabulary: how many tokens the tokenizer has.
        seed: of the weights.
    """

    family: str
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    vocabulary: int = 1000
    seed: int = 0


def parse_random_name(name: str) -> RandomModel:
    """Parses `random:FAMILY` or `random:FAMILY:KEY=VALUE,KEY=VALUE`.

    Raises:
        UserError: for an unknown family or size, or a value that the model cannot have.
    """
    family, _, listed = name.removeprefix(RANDOM).partition(":")
    if family not in FAMILIES:
        raise UserError(name, f"there is no family {family!r}", f"Use one of {', '.join(FAMILIES)}")
    keys = [field.name for field in fields(RandomModel) if field.name != "family"]
    sizes: dict[str, Any] = {}
    for item in listed.split(",") if listed else ():
        key, _, value = item.partition("=")
        if key not in keys:
            raise UserError(name, f"there is no size {key!r}", f"Use {', '.join(keys)}")
        if not value.isdecimal() or (int(value) == 0 and key != "seed"):
            raise UserError(
                name, f"{key}={value} is not a positive integer", f"Write it as {key}=2"
            )
        sizes[key] = int(value)
    model = replace(RandomModel(family), **sizes)
    if model.hidden % (2 * model.heads):
        raise UserError(
            name,
            f"hidden={model.hidden} is not a multiple of twice heads={model.heads}",
            f"Set hidden={2 * model.heads * max(1, model.hidden // (2 * model.heads))}",
        )
    return model


def build_random_model(name: str, folder: Path) -> Path:
    """Writes weights and tokenizer into the folder, as transformers saves them.

    Raises:
        UserError: when the name is wrong, or the tokenizer cannot have that many tokens.
    """
    import torch

    from stillroom.encoders.files.save_transformer import save_transformer

    spec = parse_random_name(name)
    make = word_piece_tokenizer if spec.family == "bert" else byte_level_bpe_tokenizer
    tokenizer = make(training_text(), spec.vocabulary)
    if len(tokenizer) != spec.vocabulary:
        raise UserError(
            name,
            f"its tokenizer has {len(tokenizer)} tokens, not {spec.vocabulary}",
            f"Set vocabulary={len(tokenizer)}",
        )
    with torch.random.fork_rng():  # a caller's random numbers must not depend on the cache
        model = _transformer(spec)
    set_weights(model, spec.seed)
    save_transformer(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_text(sentences: int = 4000) -> list[str]:
    """Sentences of WORDS and their inflections, early words more often, as in a language."""
    generator = np.random.default_rng(VERSION)
    lengths = generator.integers(3, 15, sentences).tolist()
    # The product of two even draws favours low ranks, and needs no floating-point functions.
    ranks = generator.integers(0, len(WORDS), (sum(lengths), 2)).prod(axis=1) // len(WORDS)
    suffixes = generator.integers(0, len(SUFFIXES), sum(lengths))
    words = iter([WORDS[r] + SUFFIXES[s] for r, s in zip(ranks, suffixes, strict=True)])
    text = [" ".join(itertools.islice(words, length)).capitalize() + "." for length in lengths]
    # Each ASCII character occurs at the start, at the end and as a whole word: WordPiece knows no
    # other characters.
    return [*text, *(f"{c} {c}a a{c}" for c in string.printable.strip())]


def byte_level_bpe_tokenizer(texts: Iterable[str], vocabulary: int, *, add_bos: bool = True) -> Any:
    """Like the tokenizers of Llama 3 and GPT-2: byte-level BPE without an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
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
        model_max_length=MAX_LENGTH,
    )


def word_piece_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Like BERT's tokenizer: lower-cased word pieces between CLS and SEP.

    Its tokens are letters, then the most frequent words and ends of words. The library's trainer
    numbers them differently in every process.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        split = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in split)
    letters = sorted({letter for word in counts for letter in word})
    pieces: Counter[str] = Counter()
    for word, count in counts.items():
        ends = [f"##{word[-length:]}" for length in range(2, min(4, len(word)))]
        pieces.update(dict.fromkeys([word, *ends] if len(word) > 1 else [], count))
    frequent = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters), *frequent][:vocabulary]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(special)
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
        model_max_length=MAX_LENGTH,
    )


def _transformer(spec: RandomModel) -> Any:
    """The transformers model of that family and size: a decoder with its head, or a BERT without
    one.
    """
    import transformers

    sizes: dict[str, int] = {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.hidden,
        "intermediate_size": 2 * spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "max_position_embeddings": MAX_LENGTH,
    }
    if spec.family == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes, pad_token_id=0))
    sizes |= {
        "num_key_value_heads": spec.heads // 2 if spec.heads % 2 == 0 else spec.heads,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if spec.family == "mistral":
        return transformers.MistralForCausalLM(
            transformers.MistralConfig(**sizes, sliding_window=32)
        )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def set_weights(model: Any, seed: int) -> None:
    """Fills matrices with uniform numbers, each from its name and the seed; norms stay 1, biases 0.

    Uniform numbers are scaled integers, exact on every processor.
    """
    import torch

    half_width = WEIGHT_STD * 3**0.5  # a uniform distribution's, of that standard deviation
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = generator.integers(-(2**20), 2**20, tuple(parameter.shape)) * (half_width / 2**20)
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))
