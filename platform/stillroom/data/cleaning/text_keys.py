"""Keys of texts: equal for texts that count as the same, or that begin alike."""

import hashlib
from collections.abc import Iterable

import numpy as np

from stillroom.data.text.words import fold

BEGINNING_CHARACTERS = 120  # texts that share this many first characters count as near-copies


def normalise(text: str) -> str:
    """The text without differences of Unicode spelling, case and white space."""
    return " ".join(fold(text).split())


def text_key(text: str) -> str:
    """SHA-256 of the normalised text."""
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()


def beginning_key(text: str) -> str:
    """Equal for texts that begin alike: boilerplate, forks and versions of one another."""
    return normalise(text)[:BEGINNING_CHARACTERS]


def hash_texts(normalised: Iterable[str]) -> np.ndarray:
    """A 64-bit hash of each normalised text, uint64, (texts,).

    The chance that any two of ten million texts collide is 3 in a million; the cost of a
    collision is one lost pair.
    """
    digests = (
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in normalised
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def equals_previous(keys: np.ndarray) -> np.ndarray:
    """Whether each key equals the one before it, bool, (keys,).

    In sorted keys this marks every occurrence of a key but its first.
    """
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[1:] = keys[1:] == keys[:-1]
    return repeated
