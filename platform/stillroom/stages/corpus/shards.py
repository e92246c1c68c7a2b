"""A corpus in the making: its rows as Parquet files on disk, and what became of each row.

A text is read and normalised shard by shard. What has to be compared over shards goes out as
sorted runs of hashes, of which a process reads one range at a time. So memory holds a shard, a
range, and a byte for every row, whose verdict that is; the rest lies on disk. Rows are numbered
in the order of the recipe's sources and files.
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

from stillroom.cluster.parallel_map import over
from stillroom.config.base import Kind
from stillroom.data.cleaning.external_sort import SortedRuns
from stillroom.data.readers.records import LeftOut, Pair
from stillroom.stages.corpus import sources
from stillroom.stages.corpus.sources import Part


class Verdict(IntEnum):
    """What became of a row: a pair, a negative of one, a passage or a conversation."""

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
    TESTED = 11
    OF_DROPPED_PAIRS = 12


REASONS: dict[str, tuple[Verdict, ...]] = {
    "pairs": tuple(v for v in Verdict if 0 < v <= Verdict.BEYOND_MAX_PAIRS),
    "negatives": (
        Verdict.OF_DROPPED_PAIRS, Verdict.POSITIVE, Verdict.CONFLICTS, Verdict.REPEATED,
        Verdict.TESTED,
    ),
    "passages": (Verdict.TESTED, Verdict.REPEATED, Verdict.NEAR_COPIES),
    "conversations": (Verdict.TESTED, Verdict.REPEATED),
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much a process holds at a time. What comes out does not depend on it."""

    rows: int = 1 << 15  # of a shard
    characters: int = 1 << 25  # of a shard
    records: int = 1 << 20  # of a range
    small: int = 1 << 26  # bytes to read, with no more of which one process is the fastest


@dataclass(frozen=True)
class Shard:
    """Rows of one part: a Parquet file, and how many rows and negatives come before it."""

    path: Path
    kind: Kind
    source: int
    rows: int
    negatives: int
    first: int = 0
    first_negative: int = 0

    @property
    def name(self) -> str:
        return f"{self.first:015d}"

    @property
    def span(self) -> slice:
        return slice(self.first, self.first + self.rows)

    @property
    def negative_span(self) -> slice:
        return slice(self.first_negative, self.first_negative + self.negatives)


@dataclass(frozen=True)
class Work:
    """Where a corpus is cleaned, in what portions, and whether on more than one core."""

    folder: Path
    sizes: Sizes
    spread: bool

    def runs(self, name: str) -> SortedRuns:
        return SortedRuns(self.folder / name)

    def verdicts(self, kind: str) -> Any:
        """A byte for each row, uint8, which every process sees and may set."""
        return np.load(self.folder / f"{kind}.npy", mmap_mode="r+")

    def over(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        return over(functools.partial(function, self), items, spread=self.spread)

    def over_hashes(self, function: Callable[..., Any], name: str, **given: Any) -> list[Any]:
        found = self.runs(name).hash_ranges(self.sizes.records)
        return self.over(functools.partial(function, name=name, **given), found)


def read(
    work: Work, parts: Sequence[tuple[int, Part]]
) -> tuple[dict[str, list[Shard]], dict[int, LeftOut]]:
    """Every part's rows as shards, in order, and nobody's verdict yet; and what could not be read
    of each source.

    Args:
        parts: each with the number of its source.
    """
    numbered = [(number, source, part) for number, (source, part) in enumerate(parts)]
    had = work.over(_read, numbered)
    found = list(itertools.chain.from_iterable(of_part for of_part, _ in had))
    left_out: dict[int, LeftOut] = defaultdict(LeftOut)
    for (source, _), (_, rest) in zip(parts, had, strict=True):
        left_out[source].add(rest)
    shards: dict[str, list[Shard]] = {"pairs": [], "passages": [], "conversations": []}
    for kind, of_kind in shards.items():
        rows = negatives = 0
        for shard in found:
            if shard.kind == kind:
                of_kind.append(replace(shard, first=rows, first_negative=negatives))
                rows, negatives = rows + shard.rows, negatives + shard.negatives
        np.save(work.folder / f"{kind}.npy", np.zeros(max(rows, 1), dtype=np.uint8))
        if kind == "pairs":
            np.save(work.folder / "negatives.npy", np.zeros(max(negatives, 1), dtype=np.uint8))
    return shards, left_out


def _read(work: Work, item: tuple[int, int, Part]) -> tuple[list[Shard], LeftOut]:
    number, source, part = item
    left_out = LeftOut()
    readers: dict[Kind, Callable[[Part, LeftOut], Iterable[Any]]] = {
        "pairs": sources.pairs,
        "passages": sources.passages,
        "conversations": sources.conversations,
    }
    found = []
    for kind, reader in readers.items():
        for place, rows in enumerate(_portions(reader(part, left_out), work.sizes)):
            path = work.folder / f"{kind}-{number:05d}-{place:06d}.parquet"
            table = _TABLES[kind](rows)
            pq.write_table(table, path, compression="lz4", use_dictionary=False)
            negatives = sum(len(row.negatives) for row in rows) if kind == "pairs" else 0
            found.append(Shard(path, kind, source, len(rows), negatives))
    return found, left_out


def _portions(rows: Iterable[Any], sizes: Sizes) -> Iterator[list[Any]]:
    portion: list[Any] = []
    characters = 0
    for row in rows:
        portion.append(row)
        characters += _characters(row)
        if len(portion) >= sizes.rows or characters >= sizes.characters:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def _characters(row: Any) -> int:
    if isinstance(row, str):
        return len(row)
    if isinstance(row, Pair):
        return len(row.query) + len(row.passage) + sum(map(len, row.negatives))
    return len(row.prompt) + len(row.completion)


_TABLES: dict[Kind, Callable[[list[Any]], pa.Table]] = {
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


def owners(table: pa.Table) -> np.ndarray:
    """The row of each negative, (negatives,)."""
    offsets = np.asarray(table["negatives"].combine_chunks().offsets)
    return np.repeat(np.arange(len(table)), np.diff(offsets))


def flat(table: pa.Table) -> pa.Array:
    """All rows' negatives, one after the other."""
    return table["negatives"].combine_chunks().flatten()
