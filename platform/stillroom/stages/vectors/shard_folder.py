"""A folder of `StoredVectors` while its shards are made, on the machine that writes it."""

import filecmp
import functools
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from stillroom.cluster.parallel_map import parallel_map
from stillroom.cluster.placement import Place, find_places
from stillroom.encoders.safe_read import map_array
from stillroom.encoders.vectors.stored import (
    DIGESTS_FILE,
    ORDER_FILE,
    POSITIONS_FILE,
    StoredVectors,
    shard_path,
    skipped_path,
    write_array,
)
from stillroom.errors import UserError, quote
from stillroom.stages.vectors.digests import DIGEST_TYPE, IndexWriter
from stillroom.stages.vectors.encode import EncodedTexts
from stillroom.stages.vectors.reuse import Found, KnownVectors
from stillroom.stages.vectors.texts import OpenTexts, describe_window, windows
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.column_writer import TableWriter

log = logging.getLogger(__name__)
WORK_FOLDER = "prepared"  # in the folder, until it is finished


@dataclass(frozen=True)
class ShardToEncode:
    """A shard in the hands of an encoder.

    Attributes:
        rows: of its texts that have no vector yet.
        found: the vectors of the others; None where there are none.
    """

    folder: "ShardFolder"
    number: int
    rows: np.ndarray
    found: Found | None


class ShardFolder:
    """Finds out which shards are missing, and writes them as their vectors come.

    Memory does not grow with the number of texts: orders and digests are mapped files.

    Args:
        number: of the folder among those that `open_texts` opens.
        known: vectors of the same encoder, which are copied; the folder then gets an index.

    Attributes:
        reused, encoded, resumed: texts, as `TextCounts` has them.
    """

    def __init__(
        self,
        open_texts: OpenTexts,
        number: int,
        out: Path,
        shard_size: int,
        known: KnownVectors | None,
    ):
        self.open_texts, self.number, self.known = open_texts, number, known
        self.part = open_texts()[number]
        self.path, self.shard_size = out / self.part.folder, shard_size
        self.shards = -(-len(self.part.texts) // shard_size)
        self.index = IndexWriter(self.path / WORK_FOLDER, len(self.part.texts))
        self.finished = self.reused = self.encoded = self.resumed = 0

    def prepare(self) -> None:
        """Writes everything but the shards and the index."""
        work = self.path / WORK_FOLDER
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        numbers: Mapping[str, DTypeLike] = {
            "order": np.int64,
            "positions": np.int64,
            "digests": np.uint64,
            **({} if self.known is None else {"keys": DIGEST_TYPE}),
        }
        spans = windows(len(self.part.texts), self.shard_size)
        describe = functools.partial(
            describe_window, self.open_texts, self.number, self.known is not None
        )
        [place] = find_places([()]) if len(spans) > 1 else [Place.DRIVER]
        described = parallel_map(describe, spans, [place] * len(spans))
        with TableWriter(work, texts=(), numbers=numbers) as table:
            for (first, _), window in zip(spans, described, strict=True):
                positions = np.empty_like(window.order)
                positions[window.order - first] = first + np.arange(len(positions))
                table.append(order=window.order, positions=positions, digests=window.digests)
                if window.keys is not None:
                    table.append(keys=window.keys)
                    self.index.add(window.keys)
        self._drop_shards_of_another_order(work / ORDER_FILE)
        for file in (ORDER_FILE, POSITIONS_FILE, DIGESTS_FILE):
            os.replace(work / file, self.path / file)
        self.order = map_array(self.path / ORDER_FILE)
        if self.known is not None:
            self.keys = map_array(work / "keys.npy")  # of each row

    def _drop_shards_of_another_order(self, order: Path) -> None:
        """An earlier version may have written shards here that hold other rows."""
        before = self.path / ORDER_FILE
        if before.exists() and not filecmp.cmp(before, order, shallow=False):
            for file in [*self.path.glob("shard-*.npy"), *self.path.glob("skipped-*.json")]:
                file.unlink()

    def missing(self, *, all_shards: bool) -> list[int]:
        """Shards to make: those without a file, or all."""
        missing = [
            i for i in range(self.shards) if all_shards or not shard_path(self.path, i).exists()
        ]
        self.finished = self.shards - len(missing)
        self.resumed = len(self.part.texts) - sum(map(self.size, missing))
        if self.finished:
            log.info(
                "%s: %d of %d shards exist already", self.part.folder, self.finished, self.shards
            )
        return missing

    def rows(self, number: int) -> np.ndarray:
        """A shard's rows in `part.texts`."""
        return self.order[number * self.shard_size : (number + 1) * self.shard_size]

    def size(self, number: int) -> int:
        """Texts in a shard."""
        return len(self.rows(number))

    def copy_known(self, number: int) -> bool:
        """Looks a shard's texts up; writes the shard, and returns True, where all are known."""
        if self.known is None:
            return False
        found = self.known.find(self.keys[self.rows(number)])
        if len(found.missing):
            return False
        self.reused += self.size(number)
        self._write_shard(number, self.known.read(found))
        return True

    def to_encode(self, number: int) -> ShardToEncode:
        """A shard's texts that have no vector yet."""
        rows = self.rows(number)
        found = None if self.known is None else self.known.find(self.keys[rows])
        if found is None or len(found.missing) == len(rows):
            return ShardToEncode(self, number, rows, None)
        return ShardToEncode(self, number, rows[found.missing], found)

    def write(self, shard: ShardToEncode, encoded: EncodedTexts, *, skip: bool) -> None:
        """Writes a shard.

        Raises:
            UserError: at a text that could not be encoded, unless such are to be skipped.
        """
        failed = {int(shard.rows[index]): why for index, why in encoded.failed.items()}
        for row, reason in failed.items():
            self._report_failed(row, reason, skip=skip)
        if failed:
            atomic_write_json(skipped_path(self.path, shard.number), failed)
        vectors_nd = encoded.vectors
        self.encoded += len(vectors_nd)
        if shard.found is not None:
            assert self.known is not None, "something was found"
            vectors_nd = self.known.read(shard.found)
            vectors_nd[shard.found.missing] = encoded.vectors
            self.reused += len(vectors_nd) - len(encoded.vectors)
        self._write_shard(shard.number, vectors_nd)

    def _report_failed(self, row: int, reason: str, *, skip: bool) -> None:
        source = "" if self.part.sources is None else f" of source {self.part.sources[row]}"
        where = f"{self.part.folder}, row {row}{source}"
        problem = f"{quote(self.part.texts[row])}: {reason}"
        if not skip:
            raise UserError(
                where,
                f"cannot be encoded, {problem}",
                "Remove it from its source, or skip such texts with scale.vectors.on_error=skip",
            )
        log.warning("%s: skipped, %s", where, problem)

    def _write_shard(self, number: int, vectors_nd: np.ndarray) -> None:
        write_array(shard_path(self.path, number), vectors_nd)
        self.finished += 1
        log.info("%s: shard %d of %d", self.part.folder, self.finished, self.shards)

    def finish(self) -> None:
        """Writes the index, for later artifacts of the same encoder, and drops working files."""
        if self.known is not None:
            self.index.write(self.path, StoredVectors(self.path).skipped)
            log.info(
                "%s: %d texts encoded, %d vectors reused",
                *(self.part.folder, self.encoded, self.reused),
            )
            del self.keys
        shutil.rmtree(self.path / WORK_FOLDER)
