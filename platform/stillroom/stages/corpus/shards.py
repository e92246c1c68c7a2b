"""A corpus's rows while it is cleaned: shards, which are Parquet files, and groups of shards.

Rows are numbered in the order of the recipe's sources and files.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.config.base import DataKind
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.stages.corpus import sources
from stillroom.stages.corpus.sources import SourcePart
from stillroom.storage.shared_folder import SharedFolder

KINDS: tuple[DataKind, ...] = get_args(DataKind)


@dataclass(frozen=True)
class ChunkSizes:
    """How much data a process holds at a time. Results do not depend on it.

    Attributes:
        rows, characters: limits of a shard; the first one reached ends it.
        records: of a sorted run and of a range of runs, about.
        groups: of shards, at least, where there are as many shards; a group is a task.
        group_shards: most shards of a group.
        serial_bytes: up to this much input, a single process is the fastest.
    """

    rows: int = 1 << 15
    characters: int = 1 << 25
    records: int = 1 << 20
    groups: int = 256
    group_shards: int = 32
    serial_bytes: int = 1 << 26


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of one kind and source, in a Parquet file.

    Attributes:
        name: unique among the shards of a kind.
        source: number of the source.
        rows, negatives: how many it has.
        size: of its texts in memory, in bytes.
        first, first_negative: how many of its kind come before it, in all sources.
    """

    name: str
    kind: DataKind
    source: int
    rows: int
    negatives: int
    size: int
    first: int = 0
    first_negative: int = 0

    @property
    def file(self) -> str:
        """Its name among the working files."""
        return f"shards/{self.kind}-{self.name}.parquet"

    @property
    def span(self) -> slice:
        """Its rows among all rows of its kind."""
        return slice(self.first, self.first + self.rows)


@dataclass(frozen=True)
class Group:
    """Consecutive shards of a kind, which one task works on, one after the other."""

    number: int
    kind: DataKind
    shards: tuple[Shard, ...]

    @property
    def first(self) -> int:
        """How many rows of its kind come before it."""
        return self.shards[0].first

    @property
    def first_negative(self) -> int:
        """How many negatives come before it."""
        return self.shards[0].first_negative

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(shard.rows for shard in self.shards)

    @property
    def negatives(self) -> int:
        """How many negatives it has."""
        return sum(shard.negatives for shard in self.shards)


Groups = dict[DataKind, list[Group]]


def make_groups(shards: Iterable[Shard], sizes: ChunkSizes) -> Groups:
    """Numbers the rows of shards in their order, and groups the shards of each kind."""
    groups: Groups = {}
    of_all = list(shards)
    for kind in KINDS:
        numbered, rows, negatives = [], 0, 0
        for shard in of_all:
            if shard.kind == kind:
                numbered.append(replace(shard, first=rows, first_negative=negatives))
                rows, negatives = rows + shard.rows, negatives + shard.negatives
        width = max(1, min(sizes.group_shards, len(numbered) // sizes.groups))
        groups[kind] = [
            Group(number, kind, tuple(numbered[start : start + width]))
            for number, start in enumerate(range(0, len(numbered), width))
        ]
    return groups


@dataclass(frozen=True)
class PartBatch:
    """Consecutive parts of a source, of one kind, that one task reads.

    Attributes:
        number: of the batch, in all sources.
        source: number of the source.
    """

    number: int
    source: int
    kind: DataKind
    parts: tuple[SourcePart, ...]


def read_parts(
    folder: SharedFolder, sizes: ChunkSizes, batch: PartBatch
) -> tuple[list[Shard], SkippedRows]:
    """Reads parts of a source into shards.

    Returns:
        The shards, whose rows are not numbered yet, and the rows that the readers skipped.
    """
    skipped, kind = SkippedRows(), batch.kind
    readers: dict[DataKind, Callable[[SourcePart, SkippedRows], Iterable[Any]]] = {
        "pairs": sources.iter_pairs,
        "passages": sources.iter_passages,
        "conversations": sources.iter_conversations,
    }
    rows_of_parts = (row for part in batch.parts for row in readers[kind](part, skipped))
    shards = []
    for i, rows in enumerate(_split_rows(rows_of_parts, sizes)):
        negatives = sum(len(row.negatives) for row in rows) if kind == "pairs" else 0
        name, table = f"{batch.number:06d}-{i:06d}", _TABLES[kind](rows)
        shard = Shard(name, kind, batch.source, len(rows), negatives, table.nbytes)
        content = io.BytesIO()
        pq.write_table(table, content, compression="lz4", use_dictionary=False)
        folder.write(shard.file, content.getbuffer())
        shards.append(shard)
    return shards, skipped


def _split_rows(rows: Iterable[Any], sizes: ChunkSizes) -> Iterator[list[Any]]:
    """Rows in lists that keep the limits of a shard."""
    chunk: list[Any] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += _characters(row)
        if len(chunk) >= sizes.rows or characters >= sizes.characters:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _characters(row: Any) -> int:
    if isinstance(row, str):
        return len(row)
    if isinstance(row, Pair):
        return len(row.query) + len(row.passage) + sum(map(len, row.negatives))
    return len(row.prompt) + len(row.completion)


_TABLES: dict[DataKind, Callable[[list[Any]], pa.Table]] = {
    "pairs": lambda rows: pa.table(
        {
            "query": pa.array([row.query for row in rows], pa.string()),
            "passage": pa.array([row.passage for row in rows], pa.string()),
            "negatives": pa.array([row.negatives for row in rows], pa.list_(pa.string())),
        }
    ),
    "passages": lambda rows: pa.table({"passage": pa.array(rows, pa.string())}),
    "conversations": lambda rows: pa.table(
        {
            name: pa.array([getattr(row, name) for row in rows], pa.string())
            for name in ("prompt", "completion", "question")
        }
    ),
}


def negative_owners(table: pa.Table) -> np.ndarray:
    """The row of each negative's pair in a table of pairs, (negatives,)."""
    offsets = np.asarray(table["negatives"].combine_chunks().offsets)
    return np.repeat(np.arange(len(table)), np.diff(offsets))


def flat_negatives(table: pa.Table) -> pa.Array:
    """The negatives of all rows of a table of pairs, one after the other."""
    return table["negatives"].combine_chunks().flatten()
