"""How well a tokenizer fits some texts: what it does not know, and how many tokens it makes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillroom.encoders.tokens.count import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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


def measure_fit(model: str, texts: Sequence[str]) -> TokenizerFit | None:
    """Tokenises the texts and looks at what is left of them.

    Returns:
        None for a tokenizer that does not say which characters its tokens are made of.

    Raises:
        UserError: when there is no such model, or it has no tokenizer.
    """
    tokenizer = read_tokenizer(model)
    if tokenizer is None:
        return None
    unknown_id = unknown_token_id(tokenizer)
    tokens, letters, unknown = [], 0, 0
    readable = [text.encode("utf-8", "replace").decode() for text in texts]  # no lone surrogates
    encodings = tokenizer.encode_batch(readable, add_special_tokens=False)
    for text, encoding in zip(readable, encodings, strict=True):
        known = bytearray(len(text))
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != unknown_id:
                known[start:end] = b"\1" * (end - start)
        is_known = [known[i] for i, character in enumerate(text) if character.isalnum()]
        tokens.append(len(encoding.ids))
        letters += len(is_known)
        unknown += is_known.count(0)
    return TokenizerFit(np.array(tokens, dtype=np.int64), letters, unknown)


def unknown_letters(model: str, texts: Sequence[str]) -> float | None:
    """The share of the texts' letters that the tokenizer does not know; see `measure_fit`."""
    fit = measure_fit(model, texts)
    return None if fit is None else fit.unknown_share


def text_room(model: str, prompt: str, max_tokens: int, copies: int = 1) -> int:
    """The most tokens of a text that a model reads, beside its prompt and special tokens.

    Args:
        copies: how often the text is given.

    Raises:
        UserError: as `measure_fit`.
    """
    tokenizer = read_tokenizer(model)
    if tokenizer is None:
        return max_tokens
    prompt_tokens = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    return (max_tokens - prompt_tokens - tokenizer.num_special_tokens_to_add(False)) // copies


def unknown_token_id(tokenizer: "Tokenizer") -> int | None:
    """The id of the token that stands for what the tokenizer does not know; None without one."""
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        number: int | None = model["unk_id"]
        return number
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)
