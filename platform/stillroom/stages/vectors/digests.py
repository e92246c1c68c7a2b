"""By what stored vectors are found again: digests of their texts."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from stillroom.data.cleaning.external_sort import (
    RunWriter,
    SortedRuns,
    hash_borders,
    read_records,
)
from stillroom.encoders.contract import Role
from stillroom.encoders.safe_read import map_array
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.shared_folder import SharedFolder

# Of the stage `vectors`. Raised when the code gives a text another vector: earlier ones are then
# not reused.
VECTORS_VERSION = 4

# In a folder of `StoredVectors`: the digests of all texts that have a vector, sorted, and the row
# of each. 24 bytes a text.
SORTED_DIGESTS_FILE, SORTED_ROWS_FILE = "sorted-digests.npy", "sorted-rows.npy"
DIGEST_BYTES = 16
DIGEST_TYPE = np.dtype(f"S{DIGEST_BYTES}")
SORTED_AT_ONCE = 1 << 19  # digests


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


class IndexWriter:
    """Writes the files by which `DigestIndex` finds rows; memory holds a part of the digests.

    Args:
        work: a folder for working files.
        rows: how many there will be.
    """

    def __init__(self, work: Path, rows: int):
        self.folder, self.rows = SharedFolder(str(work)), 0
        self.borders = hash_borders(rows, SORTED_AT_ONCE)
        self.runs = RunWriter(self.folder, "digests", self.borders, SORTED_AT_ONCE)

    def add(self, digests: np.ndarray) -> None:
        """Adds the digests of the next rows' texts."""
        high, low = digests.view(">u8").reshape(-1, 2).T
        self.runs.add(high, low, self.rows + np.arange(len(digests)))
        self.rows += len(digests)

    def write(self, folder: Path, without: Iterable[int]) -> None:
        """Writes the index; of a repeated text the first row is found.

        Args:
            without: rows that have no vector.
        """
        skipped = np.array(sorted(without), dtype=np.uint64)
        digests, rows = (Path(file).stem for file in (SORTED_DIGESTS_FILE, SORTED_ROWS_FILE))
        runs = SortedRuns(self.runs.finish())
        with TableWriter(folder, texts=(), numbers={digests: DIGEST_TYPE, rows: np.int64}) as table:
            for number in range(len(self.borders)):
                high, low, row = read_records(self.folder, runs.slices(number))[:3]
                has_vector = ~np.isin(row, skipped)
                pairs = np.stack([high, low], axis=1)[has_vector].astype(">u8")
                table.append(**{digests: pairs.view(DIGEST_TYPE)[:, 0], rows: row[has_vector]})


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
