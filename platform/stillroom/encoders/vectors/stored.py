"""Stored vectors: shards of float16 `.npy`, and the order that the texts went into them."""

import functools
import hashlib
import json
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stillroom.encoders.safe_read import array
from stillroom.errors import UserError
from stillroom.storage.atomic import written

DIGESTS = "digests.npy"


class StoredVectors:
    """Vectors of one set of texts, read by the texts' row, memory-mapped.

    `order.npy` lists rows, shortest text first; shard i holds order[i × shard : (i + 1) × shard].
    `digests.npy` tells by row which text, behind which prompt, a vector is of. Texts that could not
    be embedded have zeros, and are told by `skipped-*.json`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.order: np.ndarray = array(folder / "order.npy")
        self.files = sorted(folder.glob("shard-*.npy"))
        self._opened = functools.lru_cache(maxsize=_openable())(_mapped)
        first = self._opened(self.files[0])
        self.shard, self.dims = first.shape
        self.place = np.empty_like(self.order)  # row → position in `order`
        self.place[self.order] = np.arange(len(self.order))

    def __len__(self) -> int:
        return len(self.order)

    @functools.cached_property
    def skipped(self) -> dict[int, str]:
        """Row → why there is no vector of its text."""
        found: dict[int, str] = {}
        for file in sorted(self.folder.glob("skipped-*.json")):
            found |= {int(row): why for row, why in json.loads(file.read_text()).items()}
        return found

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the rows, float16, (len(rows), dims)."""
        places = self.place[rows]
        found = np.empty((len(places), self.dims), dtype=np.float16)
        order = np.argsort(places, kind="stable")  # a shard's rows then stand together
        numbers, starts = np.unique(places[order] // self.shard, return_index=True)
        for number, here in zip(numbers, np.split(order, starts[1:]), strict=True):
            found[here] = self._opened(self.files[number])[places[here] % self.shard]
        return found

    def blocks(
        self, numbers: Iterable[int] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, vectors) a shard, of those numbers or of all."""
        for i in range(len(self.files)) if numbers is None else numbers:
            yield self.order[i * self.shard : (i + 1) * self.shard], self._opened(self.files[i])


def _openable() -> int | None:
    """Shards that may be open at once, None for all. To open one costs more than to read some rows
    of it, but each holds a file descriptor, and there may be thousands."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most // 4


def _mapped(shard: Path) -> np.ndarray:
    """Without numpy's own class of mapped arrays, which takes as long as the rows to be indexed."""
    return np.asarray(array(shard, mmap_mode="r"))


class OfTexts:
    """Stored vectors, read by rows of the texts that they should be of.

    Args:
        prompts: what stood before each text; None for the encoder's own.

    Raises:
        UserError: at a row whose text, or its prompt, is another than the one embedded.
    """

    def __init__(self, stored: StoredVectors, texts: Sequence[str], prompts: Sequence[str | None]):
        self.stored, self.texts, self.prompts = stored, texts, prompts
        self.digests: np.ndarray = array(stored.folder / DIGESTS, mmap_mode="r")
        self._known = np.zeros(len(texts), dtype=bool)  # rows that were compared
        if len(stored) != len(texts):
            raise UserError(
                str(stored.folder),
                f"holds vectors of {len(stored):,} texts, and there are {len(texts):,}",
                "Delete that artifact, and run again",
            )

    @property
    def skipped(self) -> list[int]:
        """Rows of which there is no vector."""
        return sorted(self.stored.skipped)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of the rows, float16, (len(rows), dims)."""
        for row in rows[~self._known[rows]]:
            if self.digests[row] != digest(self.prompts[row], self.texts[row]):
                raise UserError(
                    f"{self.stored.folder}, row {row}",
                    f"holds the vector of another text or prompt than {self.texts[row][:60]!r}",
                    "Delete that artifact, and run again",
                )
        self._known[rows] = True
        return self.stored[rows]


def digest(prompt: str | None, text: str) -> int:
    """64 bits that tell a text behind its prompt from others, in every process."""
    of = f"{'own' if prompt is None else len(prompt)} {prompt or ''}{text}".encode()
    return int.from_bytes(hashlib.blake2b(of, digest_size=8).digest(), "big")


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.npy"


def skipped_path(folder: Path, number: int) -> Path:
    """Where a shard's texts are told that could not be embedded."""
    return folder / f"skipped-{number:06d}.json"


def write_whole(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` that is either whole or absent, whenever the process dies."""
    with written(path, "wb") as file:
        np.save(file, array)
