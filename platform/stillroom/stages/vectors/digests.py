"""By what stored vectors are found again: digests of their texts."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from stillroom.encoders.contract import Role
from stillroom.encoders.safe_read import map_array
from stillroom.encoders.vectors.stored import write_array

# Of the stage `vectors`. Raised when the code gives a text another vector: earlier ones are then
# not reused.
VECTORS_VERSION = 4

# In a folder of `StoredVectors`: the digests of all texts that have a vector, sorted, and the row
# of each. 24 bytes a text.
SORTED_DIGESTS_FILE, SORTED_ROWS_FILE = "sorted-digests.npy", "sorted-rows.npy"
DIGEST_BYTES = 16
DIGEST_TYPE = np.dtype(f"S{DIGEST_BYTES}")


def text_digests(role: Role, prompts: Iterable[str | None], texts: Sequence[str]) -> np.ndarray:
    """128-bit digests of what a teacher is given: a role, a prompt (None: its own) and a text.

    Returns:
        S16, (texts,).
    """
    digests = (
        hashlib.blake2b(
            f"{role} {'own' if prompt is None else len(prompt)} {prompt or ''}{text}".encode(),
            digest_size=DIGEST_BYTES,
        ).digest()
        for prompt, text in zip(prompts, texts, strict=True)
    )
    return np.fromiter(digests, dtype=DIGEST_TYPE, count=len(texts))


def write_index(folder: Path, digests: np.ndarray, without: Iterable[int]) -> None:
    """Writes the files by which `DigestIndex` finds rows.

    Args:
        digests: of the text in each row.
        without: rows that have no vector.
    """
    rows = np.argsort(digests, kind="stable")  # of a repeated text the first row is found
    if skipped := [*without]:
        rows = rows[~np.isin(rows, skipped)]
    write_array(folder / SORTED_DIGESTS_FILE, digests[rows])
    write_array(folder / SORTED_ROWS_FILE, rows.astype(np.int64, copy=False))


class DigestIndex:
    """Finds the rows of texts in a folder of `StoredVectors`; mapped, not read.

    Raises:
        UserError: when a file is missing or broken.
    """

    def __init__(self, folder: Path):
        self.digests = map_array(folder / SORTED_DIGESTS_FILE)
        self.rows = map_array(folder / SORTED_ROWS_FILE)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """The row of each digest's text, int64, (digests,); -1 where it is not here."""
        if not len(self.digests):
            return np.full(len(digests), -1, dtype=np.int64)
        at = np.searchsorted(self.digests, digests)
        at[at == len(self.digests)] = 0
        return np.where(self.digests[at] == digests, self.rows[at], -1)
