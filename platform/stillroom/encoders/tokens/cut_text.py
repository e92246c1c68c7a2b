"""Cuts a long text before it is tokenised, where that cannot change the tokens that are kept.

A tokenizer reads a text of megabytes to its end, in seconds, even if a model takes 32 tokens of it.
"""

import re
from typing import Any

import regex

from stillroom.encoders.tokens.open_end import OpenEnd, open_end

LONG_CHARACTERS = 10_000  # shorter texts are not worth a look
SHORTEST_CUT = 1000
CHARACTERS_PER_TOKEN = 8  # of a first try; most texts have fewer
GROWTH = 4  # of the next one
LONGEST_WORD = 500  # characters; of a text that has none shorter, the end is sought elsewhere

WORD_END = re.compile(r"\S(?=\s)")
# Where no normalisation, and no cluster of letter and marks, crosses the place between two letters:
# those that are GCB=Other in UAX 29.
BETWEEN_LETTERS = regex.compile(r"(?V1)[\p{GCB=XX}--\s](?=[\p{GCB=XX}--\s])")
# Of a text that shows whether a tokenizer's pieces end at white space.
WORDS = ("word", "Größe", "漢字", "12345", "it's", "a-b", "end.", "(x)", "...", "_", "#!", "é")
SPACES = (" ", "\n", "\t", "  ", " \n ", "\r\n", "\u00a0", "\u3000")


class TextCutter:
    """Cuts texts for one tokenizer; leaves them whole where no cut is known to be right.

    Where the tokenizer splits words apart, all tokens before the last word of a beginning are those
    of the whole text. Elsewhere, and in a text without spaces, see `OpenEnd`.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._splits_words = _splits_words(tokenizer)
        self._open_end: OpenEnd | None = open_end(tokenizer)

    def cut(self, text: str, tokens: int) -> str:
        """A beginning of the text whose first `tokens` tokens are the text's, or all of it.

        A word that no vocabulary can have may be shortened on the way.
        """
        if len(text) <= LONG_CHARACTERS:
            return text
        if self._open_end is not None:
            text = self._open_end.shorten_unknown_words(text)
        size = max(SHORTEST_CUT, CHARACTERS_PER_TOKEN * tokens)
        while 2 * size < len(text):
            beginning = self._cut_at_word(text, size, tokens)
            beginning = beginning or self._cut_in_word(text, size, tokens)
            if beginning is not None:
                return beginning
            size *= GROWTH
        return text

    def _cut_at_word(self, text: str, size: int, tokens: int) -> str | None:
        if not self._splits_words:
            return None
        last_word = WORD_END.search(text, size, size + LONGEST_WORD)
        end = last_word and WORD_END.search(text, last_word.end(), last_word.end() + LONGEST_WORD)
        if last_word is None or end is None:
            return None
        beginning = text[: end.end()]
        offsets = self._tokenizer(
            beginning, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        before_last_word = sum(stop <= last_word.end() for _, stop in offsets)
        return beginning if before_last_word >= tokens else None

    def _cut_in_word(self, text: str, size: int, tokens: int) -> str | None:
        if self._open_end is None:
            return None
        place = BETWEEN_LETTERS.search(text, size, size + LONGEST_WORD)
        if place is None:
            return None
        beginning = text[: place.end()]
        return beginning if self._open_end.fixed_tokens(beginning, tokens) >= tokens else None


def _splits_words(tokenizer: Any) -> bool:
    """Whether a fast tokenizer splits texts at white space before anything else."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    backend = tokenizer.backend_tokenizer
    added = (token.content.strip() for token in backend.get_added_tokens_decoder().values())
    if backend.pre_tokenizer is None or any(re.search(r"\s", token) for token in added):
        return False  # an added token with a space in it is found across words
    probe = "".join(word + space for space in SPACES for word in WORDS)
    if backend.normalizer is not None:
        probe = backend.normalizer.normalize_str(probe)
    pieces = (probe[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(probe))
    return all(len(piece.replace("\u2581", " ").split()) <= 1 for piece in pieces)
