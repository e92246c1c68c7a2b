"""How well a tokenizer fits some texts: what it does not know, and how many tokens it makes."""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TokenizerFit:
    """Figures of some texts, without special tokens.

    Attributes:
        tokens: of each text, int64, (texts,).
        letters: letters and digits of all texts.
        unknown: those of them that are in an unknown token, or in no token at all.
    """

    tokens: np.ndarray
    letters: int
    unknown: int

    @property
    def unknown_share(self) -> float:
        """The share of letters and digits that the model cannot tell apart; 0 without any."""
        return self.unknown / self.letters if self.letters else 0.0


def measure_fit(tokenizer: Any, texts: Sequence[str]) -> TokenizerFit:
    """Tokenises the texts, and looks at what is left of them.

    Args:
        tokenizer: as `model_tokenizer` returns it.
    """
    readable = [text.encode("utf-8", "replace").decode() for text in texts]  # no lone surrogates
    measure = _measure_fast if tokenizer.is_fast else _measure_slow
    rows = list(measure(tokenizer, readable))
    tokens, letters, unknown = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return TokenizerFit(tokens, int(letters.sum()), int(unknown.sum()))


def _measure_fast(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Tokens, letters and unknown letters of each text, by where its tokens are in it."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    unknown_id = unknown_token_id(tokenizer)
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        known = bytearray(len(text))
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != unknown_id:
                known[start:end] = b"\1" * (end - start)
        is_known = [known[i] for i, character in enumerate(text) if character.isalnum()]
        yield len(encoding.ids), len(is_known), is_known.count(0)


def _measure_slow(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """As `_measure_fast`, for tokenizers in Python, which do not say where their tokens are: those
    letters are unknown that the known tokens, as text, do not have.
    """
    unknown_id = unknown_token_id(tokenizer)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        known = tokenizer.decode([token for token in ids if token != unknown_id])
        letters = _letters(text)
        yield len(ids), letters, max(0, letters - _letters(known))


def _letters(text: str) -> int:
    """Letters and digits of a text, in whatever Unicode spelling."""
    return sum(map(str.isalnum, unicodedata.normalize("NFKC", text)))


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """The share of the texts' letters that the tokenizer does not know; see `measure_fit`."""
    return measure_fit(tokenizer, texts).unknown_share


def text_room(tokenizer: Any, prompt: str, max_tokens: int, copies: int = 1) -> int:
    """The most tokens of a text that a model reads, beside its prompt and special tokens.

    Args:
        copies: how often the text is given.
    """
    prompt_tokens = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return (max_tokens - prompt_tokens - int(tokenizer.num_special_tokens_to_add(False))) // copies


def unknown_token_id(tokenizer: Any) -> int | None:
    """The id of the token that stands for what the tokenizer does not know; None without one.

    Args:
        tokenizer: transformers'.
    """
    number: int | None
    if not tokenizer.is_fast:
        number = tokenizer.unk_token_id
        return number
    # Not its unk_token_id, which is often only a name: GPT-2's is the end of a text.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        number = model["unk_id"]
        return number
    token = model.get("unk_token")
    return None if token is None else tokenizer.backend_tokenizer.token_to_id(token)
