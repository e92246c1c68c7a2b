"""A corpus while it is cleaned: its rows as Parquet files on disk, and a verdict for each row.

Texts are read and normalised shard by shard. What must be compared across shards is written as
sorted runs of hashes, and a process reads one range of hashes at a time. So memory holds a shard,
a range and one byte a row (its verdict); the rest is on disk. Rows are numbered in the order of
the recipe's sources and files.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.cluster.parallel_map import parallel_map
from stillroom.config.base import DataKind
from stillroom.data.cleaning.external_sort import SortedRuns
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.stages.corpus import sources
from stillroom.stages.corpus.sources import SourcePart


class Verdict(IntEnum):
    """Whether a row is kept or why it was dropped; rows are pairs, negatives, passages or
    conversations.
    """

    KEPT = 0
    QUERY_IS_PASSAGE = 1
    REPEATED_PASSAGES = 2
    REPEATED_QUERIES = 3
    NEAR_COPIES = 4
    HELD_OUT = 5
    CONTAMINATED = 6
    BEYOND_MAX_PAIRS = 7
    POSITIVE = 8  # a negative that is its own pair's positive
    CONFLICTS = 9  # a negative that is the positive of the same query in another pair
    REPEATED = 10
    TESTED = 11  # part of an evaluation set
    OF_DROPPED_PAIRS = 12


# Reasons to drop rows of each kind, in the order of counts.json.
DROP_REASONS: dict[str, tuple[Verdict, ...]] = {
    "pairs": tuple(v for v in Verdict if 0 < v <= Verdict.BEYOND_MAX_PAIRS),
    "negatives": (
        Verdict.OF_DROPPED_PAIRS, Verdict.POSITIVE, Verdict.CONFLICTS, Verdict.REPEATED,
        Verdict.TESTED,
    ),
    "passages": (Verdict.TESTED, Verdict.REPEATED, Verdict.NEAR_COPIES),
    "conversations": (Verdict.TESTED, Verdict.REPEATED),
}  # fmt: skip


@dataclass(frozen=True)
class ChunkSizes:
    """How much data a process holds at a time. Results do not depend on it.

    Attributes:
        rows, characters: limits of a shard; the first one reached ends it.
        records: of a range of sorted runs, about.
        serial_bytes: up to this much input, a single process is the fastest.
    """

    rows: int = 1 << 15
    characters: int = 1 << 25
    records: int = 1 << 20
    serial_bytes: int = 1 << 26


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of one kind and source, in a Parquet file.

    Attributes:
        source: number of the source.
        rows, negatives: how many it has.
        first, first_negative: how many of its kind come before it, in all sources.
    """

    path: Path
    kind: DataKind
    source: int
    rows: int
    negatives: int
    first: int = 0
    first_negative: int = 0

    @property
    def name(self) -> str:
        """Unique among the shards of a kind, and sorted as they are."""
        return f"{self.first:015d}"

    @property
    def span(self) -> slice:
        """Its rows among all rows of its kind."""
        return slice(self.first, self.first + self.rows)

    @property
    def negative_span(self) -> slice:
        """Its negatives among all negatives."""
        return slice(self.first_negative, self.first_negative + self.negatives)


Shards = dict[str, list[Shard]]  # by kind


@dataclass(frozen=True)
class CleaningWorkspace:
    """The folder in which a corpus is cleaned, and how functions are run over its data.

    Attributes:
        folder: holds shards, verdicts and sorted runs.
        parallel: whether all cores of this machine are used.
    """

    folder: Path
    sizes: ChunkSizes
    parallel: bool

    def sorted_runs(self, name: str) -> SortedRuns:
        """The sorted runs of this name, which may be empty."""
        return SortedRuns(self.folder / name)

    def verdicts(self, kind: str) -> Any:
        """The `Verdict` of each row of a kind, uint8, (rows,); shared by processes and writable."""
        return np.load(self.folder / f"{kind}.npy", mmap_mode="r+")

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """function(workspace, item) for each item, such as a shard."""
        return parallel_map(functools.partial(function, self), items, parallel=self.parallel)

    def map_hash_ranges(
        self, function: Callable[..., Any], runs_name: str, **arguments: Any
    ) -> list[Any]:
        """function(workspace, key_range, runs_name=…, **arguments) for ranges of sorted runs."""
        key_ranges = self.sorted_runs(runs_name).hash_ranges(self.sizes.records)
        return self.map(functools.partial(function, runs_name=runs_name, **arguments), key_ranges)


def read_shards(
    workspace: CleaningWorkspace, parts: Sequence[tuple[int, SourcePart]]
) -> tuple[Shards, dict[int, SkippedRows]]:
    """Reads all parts into shards, and gives every row the verdict KEPT.

    Args:
        parts: each with the number of its source.

    Returns:
        Shards by kind, in the order of the parts; and the rows that each source's readers skipped.
    """
    numbered = [(number, source, part) for number, (source, part) in enumerate(parts)]
    read = workspace.map(_read_part, numbered)
    skipped: dict[int, SkippedRows] = defaultdict(SkippedRows)
    for (source, _), (_, part_skipped) in zip(parts, read, strict=True):
        skipped[source].add(part_skipped)
    all_shards = list(itertools.chain.from_iterable(part_shards for part_shards, _ in read))
    shards: Shards = {"pairs": [], "passages": [], "conversations": []}
    for kind, kind_shards in shards.items():
        rows = negatives = 0
        for shard in all_shards:
            if shard.kind == kind:
                kind_shards.append(replace(shard, first=rows, first_negative=negatives))
                rows, negatives = rows + shard.rows, negatives + shard.negatives
        np.save(workspace.folder / f"{kind}.npy", np.zeros(max(rows, 1), dtype=np.uint8))
        if kind == "pairs":
            verdicts = np.zeros(max(negatives, 1), dtype=np.uint8)
            np.save(workspace.folder / "negatives.npy", verdicts)
    return shards, skipped


def _read_part(
    workspace: CleaningWorkspace, item: tuple[int, int, SourcePart]
) -> tuple[list[Shard], SkippedRows]:
    number, source, part = item
    skipped = SkippedRows()
    readers: dict[DataKind, Callable[[SourcePart, SkippedRows], Iterable[Any]]] = {
        "pairs": sources.iter_pairs,
        "passages": sources.iter_passages,
        "conversations": sources.iter_conversations,
    }
    shards = []
    for kind, reader in readers.items():
        for i, rows in enumerate(_split_rows(reader(part, skipped), workspace.sizes)):
            path = workspace.folder / f"{kind}-{number:05d}-{i:06d}.parquet"
            table = _TABLES[kind](rows)
            pq.write_table(table, path, compression="lz4", use_dictionary=False)
            negatives = sum(len(row.negatives) for row in rows) if kind == "pairs" else 0
            shards.append(Shard(path, kind, source, len(rows), negatives))
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
