"""More records than memory holds, grouped by a key: sorted runs on disk, read range by range."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.storage.atomic import written

Range = tuple[int, int]  # of keys: from, and up to but not including

KEYS = 1 << 64


@dataclass(frozen=True)
class SortedRuns:
    """Records of uint64 columns, in files that are each sorted by the first of them, the key.

    Any number of processes may write runs, each under its own name; whoever then reads a range of
    keys finds the same records in the same order, whatever runs they came in.
    """

    folder: Path

    def write(self, name: str, *columns: np.ndarray) -> None:
        """A run. Written again under the same name, it replaces the first."""
        if not len(columns[0]):
            return
        order = np.argsort(columns[0], kind="stable")
        records = np.stack([column.astype(np.uint64, copy=False)[order] for column in columns])
        self.folder.mkdir(parents=True, exist_ok=True)
        with written(self.folder / f"{name}.npy", "wb") as file:
            np.save(file, records)

    def read(self, keys: Range) -> np.ndarray:
        """The records of a range, (columns, found), sorted by the key and then the next column."""
        found = []
        for run in self._runs():
            start = int(np.searchsorted(run[0], np.uint64(keys[0])))
            stop = run.shape[1]
            if keys[1] < KEYS:
                stop = int(np.searchsorted(run[0], np.uint64(keys[1])))
            if start < stop:
                found.append(np.array(run[:, start:stop]))
        if not found:
            return np.zeros((4, 0), dtype=np.uint64)
        records = np.concatenate(found, axis=1)
        return records[:, np.lexsort((records[1], records[0]))]

    def __len__(self) -> int:
        return sum(run.shape[1] for run in self._runs())

    def hash_ranges(self, most: int) -> list[Range]:
        """Ranges that cover all 64 bits, with some `most` records each where keys are hashes."""
        count = -(-len(self) // most)
        borders = [KEYS * i // count for i in range(count)] + [KEYS]
        return list(itertools.pairwise(borders)) if count else []

    def _runs(self) -> Iterator[np.ndarray]:
        # Mapped one at a time: only what is copied out of a run stays in memory.
        for file in sorted(self.folder.glob("*.npy")):
            yield np.load(file, mmap_mode="r")


def ranges(start: int, stop: int, width: int) -> list[Range]:
    """Ranges of so many numbers each, the last of what is left."""
    return [(low, min(low + width, stop)) for low in range(start, stop, width)]
