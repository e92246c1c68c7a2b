"""External sorting: sorted runs of records on disk, read one range of keys at a time."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.storage.atomic import atomic_write

KeyRange = tuple[int, int]  # first key, and the key after the last
KEY_SPACE = 1 << 64  # keys are uint64
MAX_COLUMNS = 4


@dataclass(frozen=True)
class SortedRuns:
    """Records of uint64 columns in files, each sorted by its first column, the key.

    Any number of processes may write runs, each under its own name. A reader of a range of keys
    then gets the same records in the same order, independent of the runs.
    """

    folder: Path

    def write(self, name: str, *columns: np.ndarray) -> None:
        """Writes a run of at most MAX_COLUMNS columns; replaces the run of the same name."""
        if not len(columns[0]):
            return
        order = np.argsort(columns[0], kind="stable")
        records = np.stack([column.astype(np.uint64, copy=False)[order] for column in columns])
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / f"{name}.npy", "wb") as file:
            np.save(file, records)

    def read(self, key_range: KeyRange) -> np.ndarray:
        """The records of a range of keys, (columns, records), sorted by key and second column.

        Without records the array is (MAX_COLUMNS, 0).
        """
        first, end = key_range
        parts = []
        for run in self._runs():
            start = int(np.searchsorted(run[0], np.uint64(first)))
            stop = run.shape[1]
            if end < KEY_SPACE:
                stop = int(np.searchsorted(run[0], np.uint64(end)))
            if start < stop:
                parts.append(np.array(run[:, start:stop]))
        if not parts:
            return np.zeros((MAX_COLUMNS, 0), dtype=np.uint64)
        records = np.concatenate(parts, axis=1)
        return records[:, np.lexsort((records[1], records[0]))]

    def __len__(self) -> int:
        """Records in all runs."""
        return sum(run.shape[1] for run in self._runs())

    def hash_ranges(self, max_records: int) -> list[KeyRange]:
        """Ranges that cover all keys, of about `max_records` records each if keys are hashes."""
        count = -(-len(self) // max_records)
        borders = [KEY_SPACE * i // count for i in range(count)] + [KEY_SPACE]
        return list(itertools.pairwise(borders)) if count else []

    def _runs(self) -> Iterator[np.ndarray]:
        # Mapped one at a time: only the copied part of a run stays in memory.
        for file in sorted(self.folder.glob("*.npy")):
            yield np.load(file, mmap_mode="r")


def split_range(start: int, stop: int, width: int) -> list[KeyRange]:
    """Consecutive ranges of `width` keys each; the last may be shorter."""
    return [(low, min(low + width, stop)) for low in range(start, stop, width)]
