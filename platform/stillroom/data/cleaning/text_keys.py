"""When two texts are the same, and when they are nearly so."""

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from stillroom.data.cleaning import word_hashes as words

NEAR = 120  # texts that share so many first characters count as copies of one another


def normalise(text: str) -> str:
    """What is left when spelling of characters, case and white space do not matter."""
    return " ".join(folded(text).split())


def folded(text: str) -> str:
    """Without differences of spelling and case."""
    # Of ASCII both are the same, but lower is much the faster.
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def text_key(text: str) -> str:
    """Equal for texts that are the same when normalised."""
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()


def near_key(text: str) -> str:
    """Equal for texts that begin alike: boilerplate, forks and versions of one another."""
    return normalise(text)[:NEAR]


def hashes(normalised: Iterable[str]) -> np.ndarray:
    """64 bits of each normalised text, uint64, (texts,).

    Among ten million texts some two have the same by accident with a chance of 3 in a million;
    what is lost then is one pair.
    """
    digests = (
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in normalised
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def mix(numbers: np.ndarray, salt: int = 0) -> np.ndarray:
    """A permutation of the 64-bit numbers in which neighbours lie far apart (splitmix64)."""
    numbers = numbers.astype(np.uint64) + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)
    return words.mix(numbers)


def repeated(keys: np.ndarray) -> np.ndarray:
    """Whether the key before it is the same, bool, (keys,); of sorted keys, all but the first."""
    again = np.zeros(len(keys), dtype=bool)
    again[1:] = keys[1:] == keys[:-1]
    return again
