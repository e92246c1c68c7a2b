"""Which tokens of a text's beginning stay the same however the text goes on.

A tokenizer splits a text into pieces, and each piece into tokens. The last pieces of a beginning
may become longer. Of a piece that does, only the tokens at its end may change: in the whole piece
some token starts, or ends, within a longest token's length of the beginning's end, and all tokens
before that place are those of the piece up to there; and what is between that place and the end is
the beginning of a token. (BPE merged nothing across a place between two
of its tokens, and Unigram's best path up to a place does not depend on what follows.) So what all
such places have in common is common to all continuations.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import regex

LAST_PIECES = 3  # that what follows may change: a space goes to the next word, "'s" to the last
LONGEST_ADDED = 64  # characters of an added token

# They change a text only near the place that they look at.
LOCAL_NORMALIZERS = {
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
    "Prepend", "Replace", "StripAccents", "Strip",
}  # fmt: skip
LOCAL_SPLITTERS = {
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation",
    "Split", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
SPACE_RUNS = " {2,}"  # the only regular expression of a normaliser that is known to be local
# Upper and lower case in one pattern (GPT-4o's) make a piece end where a later letter says so.
CASES = regex.compile(r"\\p\{L[ult]\}|\[A-Z\]|\[a-z\]")

# Letters that BertNormalizer and BertPreTokenizer leave in one word, and each at least one letter.
# Marks beside them may be removed, and end no word.
LETTER = r"[[\p{L}\p{N}]--\p{Han}]"
LETTER_OR_MARK = r"[[\p{L}\p{N}\p{M}]--\p{Han}]"


@dataclass(frozen=True)
class OpenEnd:
    """What is known about a tokenizer's end of a text.

    Attributes:
        window: characters of a longest token, in the model's own alphabet; None where a model's
            tokens depend on the whole piece.
        dropped: characters at a piece's end that what follows may change, into an added token too.
        vocabulary: all tokens, sorted.
        unknown_word: finds words longer than any that the model knows; None without a limit.
    """

    tokenizer: Any
    window: int | None
    dropped: int
    vocabulary: Sequence[str]
    unknown_word: "regex.Pattern[str] | None"

    def shorten_unknown_words(self, text: str) -> str:
        """The text, with each word that is too long for the vocabulary still too long for it."""
        return text if self.unknown_word is None else self.unknown_word.sub(r"\1", text)

    def fixed_tokens(self, beginning: str, enough: int) -> int:
        """How many of the first tokens are those of every text that starts so.

        Args:
            enough: more need not be counted.
        """
        encoding = self.tokenizer(beginning, add_special_tokens=False, verbose=False)[0]
        starts = _last_piece_starts(encoding.word_ids)
        limit = len(beginning[: len(beginning) - LONGEST_ADDED].rstrip())
        fixed = 0
        if len(starts) == LAST_PIECES:
            ends = (stop for _, stop in encoding.offsets[: starts[-1]])
            fixed = next((n for n, stop in enumerate(ends) if stop > limit), starts[-1])
        if fixed >= enough or self.window is None or not starts:
            return fixed
        last = self._fixed_in_piece(beginning, encoding.ids[starts[0] :], self.window)
        return max(fixed, starts[0] + last if last else 0)

    def _fixed_in_piece(self, beginning: str, ids: Sequence[int], window: int) -> int:
        """As `fixed_tokens`, in the last piece, which has these ids."""
        backend = self.tokenizer.backend_tokenizer
        piece = beginning
        if backend.normalizer is not None:
            piece = backend.normalizer.normalize_str(piece)
        if backend.pre_tokenizer is not None:
            piece = backend.pre_tokenizer.pre_tokenize_str(piece)[-1][0]
        if len(piece) <= 2 * window + self.dropped or _token_ids(backend, piece) != list(ids):
            return 0  # short, or not what the tokenizer took: an added token is near
        piece = piece[: len(piece) - self.dropped]
        ends = [
            end
            for end in range(len(piece) - window, len(piece) + 1)
            if self._starts_a_token(piece[end:])
        ]
        columns = zip(*(_token_ids(backend, piece[:end]) for end in ends), strict=False)
        common = takewhile(lambda column: len(set(column)) == 1, columns)
        # The last one may be a part of a longer one: of several unknown letters.
        return max(0, sum(1 for _ in common) - 1)

    def _starts_a_token(self, letters: str) -> bool:
        index = bisect_left(self.vocabulary, letters)
        return index < len(self.vocabulary) and self.vocabulary[index].startswith(letters)


def open_end(tokenizer: Any) -> OpenEnd | None:
    """What is known about a tokenizer; None where any letter might change all tokens."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    backend = tokenizer.backend_tokenizer
    description = json.loads(backend.to_str())
    normalizers = list(_parts(description["normalizer"], "normalizers"))
    splitters = list(_parts(description["pre_tokenizer"], "pretokenizers"))
    added, model = description["added_tokens"], description["model"]
    if not (
        all(map(_is_local_normalizer, normalizers))
        and all(map(_is_local_splitter, splitters))
        and all(len(token["content"]) < LONGEST_ADDED // 2 for token in added)
        and (splitters or not any(token["lstrip"] for token in added))
    ):
        return None
    vocabulary: list[str] = []
    if _grows_at_its_end(model):
        vocabulary = sorted(backend.get_vocab(with_added_tokens=False))
    letters = 4 if any(part["type"] == "ByteLevel" for part in (*normalizers, *splitters)) else 1
    return OpenEnd(
        tokenizer,
        max(map(len, vocabulary)) if vocabulary else None,
        letters * LONGEST_ADDED,
        vocabulary,
        _unknown_word(model, normalizers, splitters, added),
    )


def _parts(part: dict[str, Any] | None, members: str) -> Iterable[dict[str, Any]]:
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for member in part[members]:
        yield from _parts(member, members)


def _is_local_normalizer(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern", {})
    return part["type"] in LOCAL_NORMALIZERS and (
        pattern.get("Regex", SPACE_RUNS) == SPACE_RUNS and len(pattern.get("String", "")) < 8
    )


def _is_local_splitter(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern") or {}
    expression = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
    return part["type"] in LOCAL_SPLITTERS and CASES.search(expression) is None


def _grows_at_its_end(model: dict[str, Any]) -> bool:
    """Whether the model is one of those of which this file's first lines are true."""
    return model["type"] == "Unigram" or (
        model["type"] == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )


def _unknown_word(
    model: dict[str, Any],
    normalizers: Sequence[dict[str, Any]],
    splitters: Sequence[dict[str, Any]],
    added: Sequence[dict[str, Any]],
) -> "regex.Pattern[str] | None":
    is_bert = (
        model["type"] == "WordPiece"
        and [part["type"] for part in normalizers] == ["BertNormalizer"]
        and [part["type"] for part in splitters] == ["BertPreTokenizer"]
    )
    if not is_bert or any(regex.fullmatch(r"[\p{L}\p{N}\p{M}]+", t["content"]) for t in added):
        return None
    longest = model["max_input_chars_per_word"]
    return regex.compile(rf"(?V1)((?:{LETTER}\p{{M}}*+){{{longest + 1}}}){LETTER_OR_MARK}+")


def _last_piece_starts(pieces: Sequence[int | None]) -> list[int]:
    """Where the last pieces start, as indices of tokens, from the last one on."""
    starts: list[int] = []
    for index in range(len(pieces) - 1, -1, -1):
        if index == 0 or pieces[index - 1] != pieces[index] or pieces[index] is None:
            starts.append(index)
            if len(starts) == LAST_PIECES:
                break
    return starts


def _token_ids(backend: Any, piece: str) -> list[int]:
    return [token.id for token in backend.model.tokenize(piece)]
