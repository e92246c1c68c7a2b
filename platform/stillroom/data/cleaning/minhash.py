"""Near-copies among millions of texts: MinHash signatures, cut into bands (LSH).

The similarity of two texts is the share of three-word shingles that they have in common
(Jaccard). The probability that a permutation gives two texts the same minimum equals that
similarity (Broder, 1997). Texts that agree in all rows of a band are compared by the last bit of
every minimum (b-bit minwise hashing, arXiv 0910.3349), which is stored with the band. The usual
implementations loop over texts in Python; here the words of a batch are one array.
"""

import itertools
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from stillroom.data.cleaning.splitmix import splitmix64
from stillroom.data.cleaning.text_keys import equals_previous
from stillroom.data.text.words import fold, spaced_words

PERMUTATIONS = 128  # numbers in a signature
SHINGLE_WORDS = 3
BATCH_TEXTS = 2048  # their words fit into a processor's cache
COMPARED_NEIGHBOURS = 8  # texts of a band that a text is compared with, besides the first
MIN_RECALL = 0.9  # of pairs exactly at the given similarity; higher above it

# Random permutations of uint32: x → x * factor + term.
_rng = np.random.default_rng(0)

_FACTORS = _rng.integers(1 << 32, size=PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
_TERMS = _rng.integers(1 << 32, size=PERMUTATIONS, dtype=np.uint32)

# The number of set bits in each byte.
_BIT_COUNTS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def minhash_signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, uint32, (texts, PLACES)."""
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    word_hashes = _WordHashCache()
    for start in range(0, len(texts), BATCH_TEXTS):
        words = [spaced_words(fold(text)) or [""] for text in texts[start : start + BATCH_TEXTS]]
        shingles, text_starts = _shingles(words, word_hashes)
        for i in range(PERMUTATIONS):
            permuted = shingles * _FACTORS[i] + _TERMS[i]
            minima = np.minimum.reduceat(permuted, text_starts)
            signatures[start : start + len(words), i] = minima
    return signatures


def band_keys(signatures: np.ndarray, similarity: float) -> np.ndarray:
    """A key of each band of a signature, uint64, (texts, bands); different bands never share keys.

    Near-copies agree in at least one band, with a probability of MIN_RECALL or more.
    """
    rows = rows_per_band(similarity)
    banded = signatures.astype(np.uint64).reshape(len(signatures), PERMUTATIONS // rows, rows)
    keys = np.arange(banded.shape[1], dtype=np.uint64)[None].repeat(len(signatures), 0)
    for row in range(rows):
        keys = splitmix64(keys) ^ banded[:, :, row]
    return splitmix64(keys)


def bit_sketches(signatures: np.ndarray) -> np.ndarray:
    """The last bit of every number of a signature, packed: uint64, (texts, 2)."""
    return np.packbits((signatures & 1).astype(np.uint8), axis=1).view(np.uint64)


def rows_per_band(similarity: float) -> int:
    """The most rows that still give MIN_RECALL: more rows mean fewer needless comparisons."""
    choices = [2**i for i in range(6)]
    return max(
        rows
        for rows in choices
        if rows == 1 or 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows) >= MIN_RECALL
    )


def bands(similarity: float) -> int:
    """How many bands a signature has."""
    return PERMUTATIONS // rows_per_band(similarity)


def near_duplicates(
    keys: np.ndarray, rows: np.ndarray, sketches: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of near-copies among texts that share a band.

    Args:
        keys, rows, sketches: the band key, row and bit sketch of each text in each band, sorted
            by key and row; (n,), (n,), (n, 2).
        similarity: the least Jaccard similarity, as estimated from the sketches.

    Returns:
        The row of the later and of the earlier text of each pair, each pair once, sorted by the
        later.
    """
    indices = np.arange(len(keys))
    first = np.maximum.accumulate(np.where(equals_previous(keys), 0, indices))
    pairs = []
    for back in [*range(1, COMPARED_NEIGHBOURS + 1), None]:
        # Only the first of the band and the ones just before: a thousand copies must not become a
        # million pairs.
        other = first if back is None else indices - back
        later = np.flatnonzero((other >= first) & (other < indices))
        earlier = other[later]
        differing_bits = _BIT_COUNTS[(sketches[later] ^ sketches[earlier]).view(np.uint8)]
        # Last bits of unequal minima agree half the time.
        estimate = 1 - 2 * differing_bits.sum(1, dtype=np.int64) / PERMUTATIONS
        similar = estimate >= similarity
        pairs.append(np.stack([rows[later[similar]], rows[earlier[similar]]], axis=1))
    distinct = np.unique(np.concatenate(pairs), axis=0)
    return distinct[:, 0], distinct[:, 1]


class _WordHashCache(dict[str, int]):
    """Word → 64-bit hash, computed on first use."""

    def __missing__(self, word: str) -> int:
        digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        word_hash = self[word] = int.from_bytes(digest, "little")
        return word_hash


def _shingles(words: list[list[str]], word_hashes: _WordHashCache) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the shingles of all texts, uint32, one a word; and where each text's begin."""
    counts = np.array([len(text_words) for text_words in words])
    gap = SHINGLE_WORDS - 1  # zeros after each text, so that no shingle runs into the next
    ends = np.cumsum(counts + gap)
    starts = ends - counts - gap
    hashed = np.zeros(ends[-1] + gap, dtype=np.uint64)
    indices = np.arange(counts.sum()) + np.repeat(gap * np.arange(len(counts)), counts)
    flat = map(word_hashes.__getitem__, itertools.chain.from_iterable(words))
    hashed[indices] = np.fromiter(flat, dtype=np.uint64, count=len(indices))
    shingles = hashed[indices]
    for next_word in range(1, SHINGLE_WORDS):
        shingles = splitmix64(shingles) + hashed[indices + next_word]
    shingles = (splitmix64(shingles) >> np.uint64(32)).astype(np.uint32)
    return shingles, starts - gap * np.arange(len(counts))
