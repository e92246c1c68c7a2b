"""Stored vectors: shards of float16 `.npy`, and the order that the texts went into them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class StoredVectors:
    """Vectors of one set of texts, read by the texts' row, memory-mapped.

    `order.npy` lists rows, shortest text first; shard i holds order[i × shard : (i + 1) × shard].
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.order: np.ndarray = np.load(folder / "order.npy")
        self.shards = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("shard-*.npy"))]
        self.shard = len(self.shards[0])
        self.place = np.empty_like(self.order)  # row → position in `order`
        self.place[self.order] = np.arange(len(self.order))

    def __len__(self) -> int:
        return len(self.order)

    @property
    def dims(self) -> int:
        return int(self.shards[0].shape[1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the rows, float16, (len(rows), dims)."""
        places = self.place[rows]
        found = np.empty((len(places), self.dims), dtype=np.float16)
        for number in np.unique(places // self.shard):
            here = places // self.shard == number
            found[here] = self.shards[number][places[here] % self.shard]
        return found

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, vectors) a shard."""
        for i, vectors in enumerate(self.shards):
            yield self.order[i * self.shard : (i + 1) * self.shard], vectors


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.npy"


def write_whole(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` that is either whole or absent, whenever the process dies."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)
