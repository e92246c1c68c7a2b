"""Texts as rows of 64-bit word hashes: millions of texts compared without a string in sight."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LONGEST = 1 << 20  # characters of a text that are looked at

CHUNK = 1 << 20  # characters hashed at a time, unless one text has more

END = "\uffff"  # between texts; never a character of a text

# Scripts that put no spaces between words: Han, kana, Thai, Lao, Khmer, Burmese. Each of their
# characters is a word by itself, for want of a better border, and marks above it do not count.
ALONE = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)

_SPLITS, _LETTER, _ALONE, _SKIPPED = range(4)

_BASE = np.uint64(0x9E3779B97F4A7C15)

_BASE_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


@dataclass(frozen=True)
class Words:
    """The words of texts, in order.

    Attributes:
        hashes: uint64, (words of all texts,); odd where the word has a digit, + or #: another such
            word is another thing, never the same one with a typo.
        starts: int64, (texts + 1,); text i has the words from starts[i] to starts[i + 1].
        keys: uint64, (texts,); equal for texts of the same letters in the same order, wherever
            their words end: `data base` is `database`.
    """

    hashes: np.ndarray
    starts: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """Words of each text, int64, (texts,)."""
        return np.diff(self.starts)

    def bags(self) -> np.ndarray:
        """One hash a text, uint64, (texts,): the sum of its words', whatever their order."""
        sums = _sums(self.hashes)
        return sums[self.starts[1:]] - sums[self.starts[:-1]]

    def take(self, rows: np.ndarray) -> "Words":
        """Some of the texts, and any of them more than once."""
        counts = self.counts[rows]
        starts = offsets(counts)
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], counts)
        return Words(self.hashes[places], starts, self.keys[rows])

    def grams(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of each `length` words in a row, uint64, and the place of the first of them."""
        ends = np.repeat(self.starts[1:], self.counts)
        places = np.flatnonzero(np.arange(len(self.hashes)) + length <= ends)
        found = np.zeros(len(places), dtype=np.uint64)
        for word in range(length):
            found = found * _BASE + self.hashes[places + word]
        return mix(found), places

    def text_of(self, places: np.ndarray) -> np.ndarray:
        """The texts that words stand in, int64, like `places`."""
        return np.repeat(np.arange(len(self)), self.counts)[places]


def mix(numbers: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit given (splitmix64's last step)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def offsets(counts: np.ndarray) -> np.ndarray:
    """Where each of so many begins, and where the last ends: int64, (counts + 1,)."""
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def find(ascending: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Where each one asked stands; -1 where it does not."""
    if not len(ascending):
        return np.full(len(asked), -1)
    at = np.minimum(np.searchsorted(ascending, asked), len(ascending) - 1)
    return np.where(ascending[at] == asked, at, -1)


def spelled(text: str) -> list[str]:
    """The words themselves.

    After NFKC and case folding a word is a run of letters, marks and digits, with up to two + or
    # behind it (C++ is not C); or a character of a script without spaces; or a symbol such as €.
    Punctuation and white space only end words, and apostrophes and invisible characters vanish.
    """
    words = [""]
    for char in unicodedata.normalize("NFKC", _cut(text)).casefold():
        kind = _classes()[min(ord(char), len(_classes()) - 1)]
        if kind == _ALONE:
            words += [char, ""]
        elif kind == _LETTER or (char in "+#" and words[-1] and words[-1][-2:-1] not in ("+", "#")):
            words[-1] += char
        elif kind != _SKIPPED:
            words.append("")
    return [word for word in words if word]


def words_of(texts: Sequence[str]) -> Words:
    """The same words as `spelled` gives, hashed."""
    parts, begin, size = [], 0, 0
    for i, text in enumerate(texts):
        size += min(len(text), LONGEST)
        if size >= CHUNK or i + 1 == len(texts):
            parts.append(_hashed(texts[begin : i + 1]))
            begin, size = i + 1, 0
    if not parts:
        return Words(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.uint64))
    hashes, counts, keys = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Words(hashes, offsets(counts), keys)


def _cut(text: str) -> str:
    return text[:LONGEST].replace(END, " ")


def _hashed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of the words, how many each text has, and its key."""
    joined = END.join(_cut(text) for text in texts) + END
    joined = unicodedata.normalize("NFKC", joined).casefold()
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    table = _classes()
    classes = table[np.minimum(codes, len(table) - 1)]
    if (classes == _SKIPPED).any():
        kept = classes != _SKIPPED
        codes, classes = codes[kept], classes[kept]
    letter, alone = classes == _LETTER, classes == _ALONE
    sign = (codes == ord("+")) | (codes == ord("#"))
    if sign.any():
        behind = letter.copy()
        for _ in range(2):
            behind[1:] |= sign[1:] & behind[:-1]
        letter = behind
    first = letter.copy()
    first[1:] &= ~letter[:-1]
    last = letter.copy()
    last[:-1] &= ~letter[1:]
    starts, ends = np.flatnonzero(first | alone), np.flatnonzero(last | alone) + 1
    # A word's hash is a polynomial of its characters: a difference of sums over all of them.
    powers = np.cumprod(np.full(len(codes), _BASE))
    inverse = np.cumprod(np.full(len(codes), _BASE_INVERSE))
    sums = _sums(codes * powers)
    exact = offsets(_digits()[np.minimum(codes, len(table) - 1)] | sign)
    is_exact = exact[ends] > exact[starts]
    hashes = mix((sums[ends] - sums[starts]) * inverse[starts]) & ~np.uint64(1)
    hashes |= is_exact.astype(np.uint64)
    # And so is a text's key, of the characters of all its words.
    written = letter | alone
    places = offsets(written)
    sums = _sums(codes[written] * powers[: places[-1]])
    borders = np.append(0, np.flatnonzero(codes == ord(END)))
    begins, of_text = places[borders[:-1]], places[borders[1:]]
    keys = mix((sums[of_text] - sums[begins]) * inverse[np.minimum(begins, len(codes) - 1)])
    counts = np.diff(np.searchsorted(starts, borders))
    return hashes, counts, keys


def _sums(numbers: np.ndarray) -> np.ndarray:
    """Of all before each, and of all at last."""
    sums = np.zeros(len(numbers) + 1, dtype=np.uint64)
    np.cumsum(numbers, out=sums[1:])
    return sums


@cache
def _classes() -> np.ndarray:
    """The class of each character, uint8; the last stands for all beyond it."""
    table = np.full(0x40001, _SPLITS, dtype=np.uint8)
    for code in range(0x20000):
        category = unicodedata.category(chr(code))
        if category[0] in "LMN":
            table[code] = _LETTER
        elif category in ("Sc", "So"):
            table[code] = _ALONE
        elif category == "Cf" or code in (0x27, 0x2019, 0x02BC):
            table[code] = _SKIPPED
    for low, high in ALONE:
        for code in range(low, high + 1):
            category = unicodedata.category(chr(code))
            if category[0] in "LMN":
                table[code] = _SKIPPED if category == "Mn" else _ALONE
    return table


@cache
def _digits() -> np.ndarray:
    table = np.zeros(0x40001, dtype=bool)
    table[[code for code in range(0x20000) if chr(code).isdigit()]] = True
    return table
