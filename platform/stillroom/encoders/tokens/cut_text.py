"""Cuts a long text before it is tokenised, where that cannot change the tokens that are kept.

A tokenizer reads a text of megabytes to its end, in seconds, even if a model takes 32 tokens of it.
"""

import re
from typing import Any

LONG_CHARACTERS = 10_000  # shorter texts are not worth a look
CHARACTERS_PER_TOKEN = 8  # of a first try; most texts have fewer
GROWTH = 4  # of the next one

WORD_END = re.compile(r"\S(?=\s)")
# Of a text that shows whether a tokenizer's pieces end at white space.
WORDS = ("word", "Größe", "漢字", "12345", "it's", "a-b", "end.", "(x)", "...", "_", "#!", "é")
SPACES = (" ", "\n", "\t", "  ", " \n ", "\r\n", "\u00a0", "\u3000")


class TextCutter:
    """Cuts texts for one tokenizer; leaves them whole where it might join words.

    Words are then tokenised apart, so all tokens before the last word of a beginning are those of
    the whole text.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._splits_words = _splits_words(tokenizer)

    def cut(self, text: str, tokens: int) -> str:
        """A beginning of the text whose first `tokens` tokens are the text's, or all of it."""
        size = max(LONG_CHARACTERS, CHARACTERS_PER_TOKEN * tokens)
        while self._splits_words and 2 * size < len(text):
            last_word = WORD_END.search(text, size)
            end = last_word and WORD_END.search(text, last_word.end())
            if last_word is None or end is None:
                break
            beginning = text[: end.end()]
            offsets = self._tokenizer(
                beginning, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )["offset_mapping"]
            if sum(stop <= last_word.end() for _, stop in offsets) >= tokens:
                return beginning
            size = max(GROWTH * size, end.end())
        return text


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
