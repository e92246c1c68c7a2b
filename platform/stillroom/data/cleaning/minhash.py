"""Near-copies among millions of texts: MinHash signatures, cut into bands (LSH).

Two texts are as similar as the share of three-word sequences that they have in common (Jaccard).
A signature's place agrees for two texts as often as they are similar (Broder, 1997); texts that
agree in a whole band of places are compared, and that by the last bit of every place (b-bit
minwise hashing, arXiv 0910.3349), which travels with the band. The usual implementations take a
text at a time in Python; here a batch's words are one array.
"""

import itertools
import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from stillroom.data.cleaning.text_keys import folded, mix

PLACES = 128  # of a signature

IN_A_ROW = 3  # words

BATCH = 2048  # texts whose words fit into a processor's cache

BEFORE = 8  # texts of a band that one is compared with, beside its first

RECALL = 0.9  # of pairs that are just similar enough, and of more of those that are more so

# Scripts without spaces between words: every character counts as one.
ALONE = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])"
)

_rng = np.random.default_rng(0)

_FACTORS = _rng.integers(1 << 32, size=PLACES, dtype=np.uint32) | np.uint32(1)

_TERMS = _rng.integers(1 << 32, size=PLACES, dtype=np.uint32)

_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, uint32, (texts, PLACES)."""
    found = np.empty((len(texts), PLACES), dtype=np.uint32)
    known = _Words()
    for begin in range(0, len(texts), BATCH):
        words = [_words(text) for text in texts[begin : begin + BATCH]]
        shingles, starts = _shingles(words, known)
        for place in range(PLACES):
            permuted = shingles * _FACTORS[place] + _TERMS[place]
            found[begin : begin + len(words), place] = np.minimum.reduceat(permuted, starts)
    return found


def bands(signatures: np.ndarray, similarity: float) -> np.ndarray:
    """What near-copies have in common, uint64, (texts, bands); bands have other keys each."""
    rows = rows_of_a_band(similarity)
    words = signatures.astype(np.uint64).reshape(len(signatures), -1, rows)
    keys = np.arange(words.shape[1], dtype=np.uint64)[None].repeat(len(signatures), 0)
    for row in range(rows):
        keys = mix(keys) ^ words[:, :, row]
    return mix(keys)


def sketches(signatures: np.ndarray) -> np.ndarray:
    """The last bit of every place, uint64, (texts, 2)."""
    return np.packbits((signatures & 1).astype(np.uint8), axis=1).view(np.uint64)


def rows_of_a_band(similarity: float) -> int:
    """The most places a band, and so the fewest needless comparisons, that RECALL allows."""
    choices = [2**i for i in range(6)]
    return max(
        rows
        for rows in choices
        if rows == 1 or 1 - (1 - similarity**rows) ** (PLACES // rows) >= RECALL
    )


def copies(
    keys: np.ndarray, rows: np.ndarray, sketch: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Near-copies among texts that share a band.

    Args:
        keys, rows, sketch: of each text in each band, sorted by key and row; (n,), (n,), (n, 2).

    Returns:
        Rows of the later and of the earlier text of each pair found, once each, by the later.
    """
    places = np.arange(len(keys))
    opens = np.ones(len(keys), dtype=bool)
    opens[1:] = keys[1:] != keys[:-1]
    first = np.maximum.accumulate(np.where(opens, places, 0))
    pairs = []
    for back in [*range(1, BEFORE + 1), None]:
        # The first of its band, and those right before it: a thousand copies are no million pairs.
        other = first if back is None else places - back
        later = np.flatnonzero((other >= first) & (other < places))
        earlier = other[later]
        differ = _ONES[(sketch[later] ^ sketch[earlier]).view(np.uint8)].sum(1, dtype=np.int64)
        # Bits of different places agree half the time.
        alike = 1 - 2 * differ / PLACES >= similarity
        pairs.append(np.stack([rows[later[alike]], rows[earlier[alike]]], axis=1))
    found = np.unique(np.concatenate(pairs), axis=0)
    return found[:, 0], found[:, 1]


class _Words(dict[str, int]):
    def __missing__(self, word: str) -> int:
        digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = self[word] = int.from_bytes(digest, "little")
        return number


def _words(text: str) -> list[str]:
    text = folded(text)
    return (text if text.isascii() else ALONE.sub(r" \1 ", text)).split() or [""]


def _shingles(words: list[list[str]], known: _Words) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of words as uint32, as many as words, and where each text's begin."""
    counts = np.array([len(of_text) for of_text in words])
    gap = IN_A_ROW - 1  # after each text, so that no sequence runs into the next
    ends = np.cumsum(counts + gap)
    starts = ends - counts - gap
    hashed = np.zeros(ends[-1] + gap, dtype=np.uint64)
    within = np.arange(counts.sum()) + np.repeat(gap * np.arange(len(counts)), counts)
    flat = map(known.__getitem__, itertools.chain.from_iterable(words))
    hashed[within] = np.fromiter(flat, dtype=np.uint64, count=len(within))
    found = hashed[within]
    for next_word in range(1, IN_A_ROW):
        found = mix(found) + hashed[within + next_word]
    return (mix(found) >> np.uint64(32)).astype(np.uint32), starts - gap * np.arange(len(counts))
