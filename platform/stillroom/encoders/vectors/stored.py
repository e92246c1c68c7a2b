"""Stored vectors: shards of float16 `.npy`, and the order in which texts went into them."""

import functools
import hashlib
import json
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stillroom.encoders.safe_read import read_array
from stillroom.errors import UserError, quote
from stillroom.storage.atomic import atomic_write

DIGESTS_FILE = "digests.npy"


class StoredVectors:
    """Memory-mapped vectors of a list of texts, read by the texts' rows.

    `order.npy` lists rows, the shortest text first; shard i holds the vectors of
    order[i × shard_size : (i + 1) × shard_size]. `digests.npy` has a digest of each row's text and
    prompt. Texts that could not be embedded have zeros, and `skipped-*.json` says why.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.order: np.ndarray = read_array(folder / "order.npy")
        self.files = sorted(folder.glob("shard-*.npy"))
        self._open = functools.lru_cache(maxsize=_max_open_shards())(_mapped)
        self.shard_size, self.dims = self._open(self.files[0]).shape
        self.positions = np.empty_like(self.order)  # row → position in `order`
        self.positions[self.order] = np.arange(len(self.order))

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
        vectors_nd = np.empty((len(positions), self.dims), dtype=np.float16)
        order = np.argsort(positions, kind="stable")  # groups the rows of each shard
        shards, starts = np.unique(positions[order] // self.shard_size, return_index=True)
        for shard, here in zip(shards, np.split(order, starts[1:]), strict=True):
            vectors_nd[here] = self._open(self.files[shard])[positions[here] % self.shard_size]
        return vectors_nd

    def blocks(
        self, shards: Iterable[int] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, vectors) of each shard with one of these numbers; None: of all."""
        for shard in range(len(self.files)) if shards is None else shards:
            start = shard * self.shard_size
            yield self.order[start : start + self.shard_size], self._open(self.files[shard])


def _max_open_shards() -> int | None:
    """How many shards to keep open; None: all.

    Opening a shard costs more than reading some of its rows, but each holds a file descriptor, and
    there may be thousands.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit // 4


def _mapped(shard: Path) -> np.ndarray:
    """A plain array: indexing numpy's memmap class takes as long as reading the rows."""
    return np.asarray(read_array(shard, mmap_mode="r"))


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
        self.digests: np.ndarray = read_array(stored.folder / DIGESTS_FILE, mmap_mode="r")
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


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` file atomically: it is complete or absent."""
    with atomic_write(path, "wb") as file:
        np.save(file, array)
