"""Stored vectors: shards of float16 `.npy`, and the order in which texts went into them."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stillroom.encoders.safe_read import map_array
from stillroom.errors import UserError, quote
from stillroom.storage.atomic import atomic_write

ORDER_FILE, POSITIONS_FILE, DIGESTS_FILE = "order.npy", "positions.npy", "digests.npy"


class StoredVectors:
    """Memory-mapped vectors of a list of texts, read by the texts' rows.

    `order.npy` lists rows, the shortest text first, and `positions.npy` is its inverse; shard i
    holds the vectors of order[i × shard_size : (i + 1) × shard_size]. `digests.npy` has a digest of
    each row's text and prompt. Texts that could not be embedded have zeros, and `skipped-*.json`
    says why.

    All of it is mapped. Reading rows takes time in proportion to them, however many shards there
    are: each is mapped once, at its first row.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.order = map_array(folder / ORDER_FILE)
        self.positions = map_array(folder / POSITIONS_FILE)
        self.files = sorted(folder.glob("shard-*.npy"))
        self._shards: dict[int, np.ndarray] = {}
        self.shard_size, self.dims = self._shard(0).shape

    def __len__(self) -> int:
        return len(self.order)

    @functools.cached_property
    def skipped(self) -> dict[int, str]:
        """Row → why its text has no vector."""
        reasons: dict[int, str] = {}
        for file in sorted(self.folder.glob("skipped-*.json")):
            reasons |= {int(row): why for row, why in json.loads(file.read_text()).items()}
        return reasons

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the rows, float16 (len(rows), dims)."""
        positions = self.positions[rows]
        order = np.argsort(positions, kind="stable")  # groups the rows of each shard
        shards, offsets = np.divmod(positions[order], self.shard_size)
        first = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
        vectors_nd = np.empty((len(positions), self.dims), dtype=np.float16)
        for start, stop in itertools.pairwise([*first, len(positions)]):
            shard = self._shard(int(shards[start]))
            if stop - start == 1:  # most rows, where there are many shards
                vectors_nd[order[start]] = shard[offsets[start]]
            else:
                vectors_nd[order[start:stop]] = shard[offsets[start:stop]]
        return vectors_nd

    def _shard(self, number: int) -> np.ndarray:
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = map_array(self.files[number])
        return shard

    def blocks(
        self, shards: Iterable[int] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, vectors) of each shard with one of these numbers; None: of all."""
        for shard in range(len(self.files)) if shards is None else shards:
            start = shard * self.shard_size
            yield self.order[start : start + self.shard_size], self._shard(shard)


class VerifiedVectors:
    """Stored vectors, checked to belong to these texts and prompts when they are read.

    Args:
        prompts: the prompt before each text; None for the encoder's own.

    Raises:
        UserError: when the number of texts differs, and when reading a row whose text or prompt
            is not the one that was embedded.
    """

    def __init__(self, stored: StoredVectors, texts: Sequence[str], prompts: Sequence[str | None]):
        self.stored, self.texts, self.prompts = stored, texts, prompts
        self.digests = map_array(stored.folder / DIGESTS_FILE)
        self._is_verified = np.zeros(len(texts), dtype=bool)
        if len(stored) != len(texts):
            raise UserError(
                str(stored.folder),
                f"holds vectors of {len(stored):,} texts, and there are {len(texts):,}",
                "Delete that artifact, and run again",
            )

    @property
    def skipped(self) -> list[int]:
        """Rows without a vector."""
        return sorted(self.stored.skipped)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the rows, float16 (len(rows), dims)."""
        for row in rows[~self._is_verified[rows]]:
            if self.digests[row] != text_digest(self.prompts[row], self.texts[row]):
                raise UserError(
                    f"{self.stored.folder}, row {row}",
                    f"holds the vector of another text or prompt than {quote(self.texts[row])}",
                    "Delete that artifact, and run again",
                )
        self._is_verified[rows] = True
        return self.stored[rows]


def text_digest(prompt: str | None, text: str) -> int:
    """A 64-bit hash of a text and its prompt, the same in every process."""
    content = f"{'own' if prompt is None else len(prompt)} {prompt or ''}{text}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard's vectors."""
    return folder / f"shard-{number:06d}.npy"


def skipped_path(folder: Path, number: int) -> Path:
    """The file that says which texts of a shard could not be embedded, and why."""
    return folder / f"skipped-{number:06d}.json"


def write_order(folder: Path, order: np.ndarray) -> None:
    """Writes the rows in the order of the shards, and each row's position in it."""
    positions = np.empty_like(order)
    positions[order] = np.arange(len(order))
    write_array(folder / ORDER_FILE, order)
    write_array(folder / POSITIONS_FILE, positions)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` file atomically: it is complete or absent."""
    with atomic_write(path, "wb") as file:
        np.save(file, array)
