"""Texts as arrays of 64-bit word hashes, so that millions of texts are compared without strings."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import regex

from stillroom.data.cleaning.splitmix import GOLDEN_RATIO, mix_bits
from stillroom.data.text.words import UNSPACED, fold, plain_letters

MAX_TEXT_CHARACTERS = 1 << 20  # longer texts are cut
CHUNK_CHARACTERS = 1 << 20  # hashed at a time; one long text may have more
TEXT_END = "\uffff"  # separates texts; never a character of a text

# Classes of characters: ends a word, part of a word, a word by itself, ignored.
_SEPARATOR, _LETTER, _WORD, _IGNORED = range(4)

_BASE = GOLDEN_RATIO  # of the polynomials; odd, so it has an inverse
_BASE_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


@dataclass(frozen=True)
class WordHashes:
    """The hashed words of some texts, in order.

    Attributes:
        hashes: uint64, (words of all texts,). Odd if the word has a digit, + or #: two such words
            that differ mean different things and are never typos of each other.
        starts: int64, (texts + 1,). Text i has the words from starts[i] to starts[i + 1].
        keys: uint64, (texts,). Equal for texts of the same letters in the same order, wherever
            words end: `data base` equals `database`.
    """

    hashes: np.ndarray
    starts: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """How many words each text has, int64, (texts,)."""
        return np.diff(self.starts)

    def bags(self) -> np.ndarray:
        """A hash of each text's bag of words (the sum of their hashes), uint64, (texts,)."""
        sums = _prefix_sums(self.hashes)
        return sums[self.starts[1:]] - sums[self.starts[:-1]]

    def take(self, rows: np.ndarray) -> "WordHashes":
        """The texts of these rows; a row may come more than once."""
        counts = self.counts[rows]
        words = concatenated_ranges(self.starts[rows], counts)
        return WordHashes(self.hashes[words], offsets_from_counts(counts), self.keys[rows])

    def grams(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Every n-gram of `length` words within a text.

        Returns:
            Hashes, uint64, (grams,); and the index in `hashes` of each gram's first word.
        """
        ends = np.repeat(self.starts[1:], self.counts)
        first_words = np.flatnonzero(np.arange(len(self.hashes)) + length <= ends)
        hashes = np.zeros(len(first_words), dtype=np.uint64)
        for word in range(length):
            hashes = hashes * _BASE + self.hashes[first_words + word]
        return mix_bits(hashes), first_words

    def text_of(self, words: np.ndarray) -> np.ndarray:
        """The text that each word is in, int64; words are indices into `hashes`."""
        return np.repeat(np.arange(len(self)), self.counts)[words]


def offsets_from_counts(counts: np.ndarray) -> np.ndarray:
    """Start of each of consecutive segments, then the end of the last: int64, (counts + 1,)."""
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def concatenated_ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, … (`count` numbers) for each start, one range after the other: int64."""
    offsets = offsets_from_counts(counts)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def find_sorted(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The index of each value in an ascending array; -1 where it is absent."""
    if not len(ascending):
        return np.full(len(values), -1)
    index = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[index] == values, index, -1)


def split_words(text: str) -> list[str]:
    """The words of a text.

    After NFKC and case folding a word is a run of letters, marks and digits, with up to two + or
    # at its end (C++ is not C); or a character of a script without spaces, for which marks above
    or below it are ignored; or a symbol such as €. Punctuation and white space only separate
    words; apostrophes and invisible characters are ignored.
    """
    words = [""]
    for char in _folded(text):
        kind = _classes()[min(ord(char), len(_classes()) - 1)]
        if kind == _WORD:
            words += [char, ""]
        elif kind == _LETTER or (char in "+#" and words[-1] and words[-1][-2:-1] not in ("+", "#")):
            words[-1] += char
        elif kind != _IGNORED:
            words.append("")
    return [word for word in words if word]


def hash_words(texts: Sequence[str]) -> WordHashes:
    """The words that `split_words` gives, hashed."""
    chunks, start, size = [], 0, 0
    for i, text in enumerate(texts):
        size += min(len(text), MAX_TEXT_CHARACTERS)
        if size >= CHUNK_CHARACTERS or i + 1 == len(texts):
            chunks.append(_hash_chunk(texts[start : i + 1]))
            start, size = i + 1, 0
    if not chunks:
        return WordHashes(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.uint64))
    hashes, counts, keys = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    return WordHashes(hashes, offsets_from_counts(counts), keys)


def _folded(text: str) -> str:
    return plain_letters(fold(text))[:MAX_TEXT_CHARACTERS].replace(TEXT_END, " ")


def _hash_chunk(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of the words, how many words each text has, and its key."""
    codes, classes = _characters(texts)
    letter, lone = classes == _LETTER, classes == _WORD
    sign = (codes == ord("+")) | (codes == ord("#"))
    if sign.any():  # up to two of them belong to the word before
        with_signs = letter.copy()
        for _ in range(2):
            with_signs[1:] |= sign[1:] & with_signs[:-1]
        letter = with_signs
    first, last = letter.copy(), letter.copy()
    first[1:] &= ~letter[:-1]
    last[:-1] &= ~letter[1:]
    starts, ends = np.flatnonzero(first | lone), np.flatnonzero(last | lone) + 1
    # A word's hash is a polynomial of its characters: a difference of two prefix sums.
    powers = np.cumprod(np.full(len(codes), _BASE))
    inverse_powers = np.cumprod(np.full(len(codes), _BASE_INVERSE))
    sums = _prefix_sums(codes * powers)
    exact = offsets_from_counts(_digits()[np.minimum(codes, len(_digits()) - 1)] | sign)
    is_exact = exact[ends] > exact[starts]
    hashes = mix_bits((sums[ends] - sums[starts]) * inverse_powers[starts]) & ~np.uint64(1)
    hashes |= is_exact.astype(np.uint64)
    # So is a text's key, of the characters of all its words.
    in_word = letter | lone
    offsets = offsets_from_counts(in_word)
    sums = _prefix_sums(codes[in_word] * powers[: offsets[-1]])
    borders = np.append(0, np.flatnonzero(codes == ord(TEXT_END)))
    text_starts, text_ends = offsets[borders[:-1]], offsets[borders[1:]]
    scale = inverse_powers[np.minimum(text_starts, len(codes) - 1)]
    keys = mix_bits((sums[text_ends] - sums[text_starts]) * scale)
    counts = np.diff(np.searchsorted(starts, borders))
    return hashes, counts, keys


def _characters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points, uint64, and classes of the texts' characters, ignored ones left out.

    TEXT_END follows each text.
    """
    joined = TEXT_END.join(map(_folded, texts)) + TEXT_END
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    classes = _classes()[np.minimum(codes, len(_classes()) - 1)]
    if (classes == _IGNORED).any():
        kept = classes != _IGNORED
        codes, classes = codes[kept], classes[kept]
    return codes, classes


def _prefix_sums(numbers: np.ndarray) -> np.ndarray:
    """The sum of all numbers before each, then of all, uint64, (numbers + 1,)."""
    sums = np.zeros(len(numbers) + 1, dtype=np.uint64)
    np.cumsum(numbers, out=sums[1:])
    return sums


@cache
def _classes() -> np.ndarray:
    """The class of each code point, uint8; the last entry stands for all beyond it."""
    table = np.full(0x40001, _SEPARATOR, dtype=np.uint8)
    for code in range(0x20000):
        category = unicodedata.category(chr(code))
        if category[0] in "LMN":
            table[code] = _LETTER
        elif category in ("Sc", "So"):
            table[code] = _WORD
    table[[ord("'"), ord("\u2019"), ord("\u02bc")]] = _IGNORED
    for char in regex.findall(f"[{UNSPACED}]", "".join(map(chr, range(len(table) - 1)))):
        category = unicodedata.category(char)
        if category[0] in "LMN":
            table[ord(char)] = _IGNORED if category == "Mn" else _WORD
    return table


@cache
def _digits() -> np.ndarray:
    """Whether each code point is a digit, bool; the last entry stands for all beyond it."""
    table = np.zeros(0x40001, dtype=bool)
    table[[code for code in range(0x20000) if chr(code).isdigit()]] = True
    return table
