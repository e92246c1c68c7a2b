"""How a corpus is cleaned: by tasks on any node, whose working files lie under the root.

Two kinds of tasks take turns. A task on a group of shards reads its rows and their verdicts, and
writes what must be compared with other groups as sorted runs of keys. A task on a range of keys
reads that range of all runs, and writes the rows that are to be dropped, as runs of row numbers;
the next task on a group reads those of its rows. Nothing is changed in place, and a file's name
and content depend on the task alone. So a task that ran half, or twice, does no harm; and memory
holds a shard, a run or a range, and one byte for each row of a group.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from stillroom.cluster.parallel_map import parallel_map
from stillroom.cluster.placement import Place
from stillroom.config.base import DataKind
from stillroom.data.cleaning.external_sort import (
    RunSlice,
    RunWriter,
    SortedRun,
    SortedRuns,
    hash_borders,
    read_records,
)
from stillroom.stages.corpus.shards import ChunkSizes, Group, Groups, Shard
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.storage.shared_folder import SharedFolder

RowKind = DataKind | Literal["negatives"]
Runs = dict[str, list[SortedRun]]  # what a task wrote, by name


@dataclass(frozen=True)
class WorkFiles:
    """The working files, as tasks read and write them."""

    folder: SharedFolder
    sizes: ChunkSizes

    def writer(self, name: str, part: int, borders: np.ndarray) -> RunWriter:
        """Writes the runs of a task.

        Args:
            name: of the runs of all tasks.
            part: number of the task.
        """
        return RunWriter(self.folder, f"{name}/{part:06d}", borders, self.sizes.records)

    def records(self, slices: Sequence[RunSlice]) -> np.ndarray:
        """Records, (columns, records), sorted by key and second column."""
        return read_records(self.folder, slices)

    def table(self, shard: Shard, *columns: str) -> pa.Table:
        """Rows of a shard: all columns, or some."""
        return self.folder.read_table(shard.file, [*columns] or None)

    def write_hashes(self, shard: Shard, hashes: np.ndarray) -> None:
        """Keeps hashes of a shard of pairs: of queries, of passages and, where `hold_out` needs
        them, of their beginnings; (2 or 3, rows).
        """
        self.folder.write_array(f"hashes/{shard.name}.npy", hashes)

    def hashes(self, shard: Shard) -> np.ndarray:
        """What `write_hashes` kept."""
        return self.folder.read_array(f"hashes/{shard.name}.npy")

    def write_negative_hashes(self, shard: Shard, hashes: np.ndarray) -> None:
        """Keeps the hashes of a shard's negatives, (negatives,)."""
        self.folder.write_array(f"hashes/negatives-{shard.name}.npy", hashes)

    def negative_hashes(self, shard: Shard) -> np.ndarray:
        """What `write_negative_hashes` kept."""
        return self.folder.read_array(f"hashes/negatives-{shard.name}.npy")


@dataclass(frozen=True)
class GroupTask:
    """The rows of a group. What a task sets in the verdicts is kept.

    Attributes:
        verdicts: the `Verdict` of each row, uint8, (rows,).
        negative_verdicts: of each negative, uint8, (negatives,).
    """

    files: WorkFiles
    group: Group
    verdicts: np.ndarray
    negative_verdicts: np.ndarray

    @classmethod
    def of(cls, files: WorkFiles, group: Group, verdicts: np.ndarray) -> "GroupTask":
        """A task whose verdicts are views of one array, first those of rows."""
        return cls(files, group, verdicts[: group.rows], verdicts[group.rows :])

    def writer(self, name: str, borders: np.ndarray) -> RunWriter:
        """Writes runs of the group."""
        return self.files.writer(name, self.group.number, borders)

    def shards(self) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
        """Each shard with the verdicts of its rows and of its negatives, which can be set."""
        for shard in self.group.shards:
            first = shard.first - self.group.first
            first_negative = shard.first_negative - self.group.first_negative
            yield (
                shard,
                self.verdicts[first : first + shard.rows],
                self.negative_verdicts[first_negative : first_negative + shard.negatives],
            )


@dataclass(frozen=True)
class _GroupItem:
    """A group, as its task gets it.

    Attributes:
        read, written: folders of verdicts; None: all are KEPT.
        drops: rows to drop, and negatives, with their verdict.
        argument: of the function.
    """

    group: Group
    read: str | None
    written: str
    drops: list[tuple[Verdict, list[RunSlice]]]
    negative_drops: list[tuple[Verdict, list[RunSlice]]]
    argument: Any = None


@dataclass(frozen=True)
class _RangeItems(Sequence[tuple[int, list[list[RunSlice]]]]):
    """Number of each range, and its parts of several runs: made when a task gets them, since
    together they grow with the square of the corpus.
    """

    runs: tuple[SortedRuns, ...]
    ranges: int

    def __len__(self) -> int:
        return self.ranges

    def __getitem__(self, number: Any) -> Any:
        number = range(self.ranges)[number]
        return number, [of_all.slices(number) for of_all in self.runs]


@dataclass
class CleaningWorkspace:
    """What the driver knows of the working files: their names, never their content.

    Attributes:
        place: where tasks run.
        groups: of shards, by kind.
    """

    files: WorkFiles
    place: Place
    groups: Groups = field(default_factory=dict)
    _passes: int = 0
    _verdicts: dict[DataKind, str] = field(default_factory=dict)  # folder of the present ones
    _drops: dict[RowKind, list[tuple[Verdict, SortedRuns]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def rows(self, kind: DataKind) -> int:
        """How many rows of a kind were read."""
        return sum(group.rows for group in self.groups[kind])

    @property
    def negatives(self) -> int:
        """How many negatives were read."""
        return sum(group.negatives for group in self.groups["pairs"])

    def hash_borders(self, records: int) -> np.ndarray:
        """Ranges of hashes for so many records."""
        return hash_borders(records, self.files.sizes.records)

    def row_borders(self, kind: RowKind) -> np.ndarray:
        """Ranges of the row numbers of a kind: those of its groups."""
        if kind == "negatives":
            first = [group.first_negative for group in self.groups["pairs"]]
        else:
            first = [group.first for group in self.groups[kind]]
        return np.array(first or [0], dtype=np.uint64)

    def map(
        self, function: Callable[..., Any], items: Sequence[Any], /, **arguments: Any
    ) -> Iterator[Any]:
        """function(files, item, **arguments) for each item, in their order."""
        call = functools.partial(_call, function, self.files, arguments)
        return parallel_map(call, items, [self.place] * len(items))

    def map_groups(
        self,
        kind: DataKind,
        function: Callable[..., Any],
        arguments_of: Sequence[Any] | None = None,
        /,
        **arguments: Any,
    ) -> Iterator[Any]:
        """function(task, **arguments) for the `GroupTask` of each group of a kind, in order.

        The verdicts that it sets hold once all results were taken.

        Args:
            arguments_of: an argument for each group, which follows the task.
        """
        self._passes += 1
        written = f"verdicts/{self._passes:03d}-{kind}"
        negatives = self._drops["negatives"] if kind == "pairs" else []
        items = [
            _GroupItem(
                group,
                self._verdicts.get(kind),
                written,
                [(verdict, runs.slices(group.number)) for verdict, runs in self._drops[kind]],
                [(verdict, runs.slices(group.number)) for verdict, runs in negatives],
                None if arguments_of is None else arguments_of[group.number],
            )
            for group in self.groups[kind]
        ]
        extra = arguments_of is not None
        yield from self.map(_run_group, items, function=function, extra=extra, arguments=arguments)
        self._verdicts[kind] = written
        self._drops[kind].clear()
        negatives.clear()

    def map_ranges(
        self,
        function: Callable[..., Any],
        borders: np.ndarray,
        /,
        *runs: SortedRuns,
        **arguments: Any,
    ) -> list[Any]:
        """function(files, number, *records, **arguments) for each range of keys.

        Args:
            runs: whose records of the range the function gets, (columns, records), sorted by key
                and second column.
        """
        items = _RangeItems(runs, len(borders))
        return [*self.map(_run_range, items, function=function, arguments=arguments)]

    def drop(self, kind: RowKind, verdict: Verdict, found: Iterable[list[SortedRun]]) -> None:
        """Drops the rows in runs over `row_borders(kind)`, unless they are dropped already."""
        self._drops[kind].append((verdict, join_runs(found)))

    def verdicts(self, kind: DataKind) -> Iterator[tuple[Shard, np.ndarray]]:
        """Each shard of a kind with the verdicts of its rows, as the last pass left them."""
        assert not self._drops[kind]
        for group in self.groups[kind]:
            array = self.files.folder.read_array(_verdict_file(self._verdicts[kind], group))
            for shard, verdicts, _ in GroupTask.of(self.files, group, array).shards():
                yield shard, verdicts

    def delete(self, *names: str) -> None:
        """Deletes the runs of these names, which nobody needs any more."""
        for name in names:
            self.files.folder.delete(name)


def join_runs(runs: Iterable[list[SortedRun]]) -> SortedRuns:
    """The runs of several tasks."""
    return SortedRuns([run for of_task in runs for run in of_task])


def join_named_runs(results: Iterable[Runs]) -> dict[str, SortedRuns]:
    """The runs of several tasks, by name; of a name that no task wrote there are none."""
    joined: dict[str, list[SortedRun]] = defaultdict(list)
    for result in results:
        for name, runs in result.items():
            joined[name] += runs
    return defaultdict(SortedRuns, {name: SortedRuns(runs) for name, runs in joined.items()})


def _call(
    function: Callable[..., Any], files: WorkFiles, arguments: dict[str, Any], item: Any
) -> Any:
    return function(files, item, **arguments)


def _run_range(
    files: WorkFiles,
    item: tuple[int, list[list[RunSlice]]],
    *,
    function: Callable[..., Any],
    arguments: dict[str, Any],
) -> Any:
    number, slices = item
    return function(files, number, *map(files.records, slices), **arguments)


def _run_group(
    files: WorkFiles,
    item: _GroupItem,
    *,
    function: Callable[..., Any],
    extra: bool,
    arguments: dict[str, Any],
) -> Any:
    group = item.group
    if item.read is None:
        verdicts = np.zeros(group.rows + group.negatives, dtype=np.uint8)
    else:
        verdicts = files.folder.read_array(_verdict_file(item.read, group))
    task = GroupTask.of(files, group, verdicts)
    for array, first, drops in (
        (task.verdicts, group.first, item.drops),
        (task.negative_verdicts, group.first_negative, item.negative_drops),
    ):
        for verdict, slices in drops:
            rows = files.records(slices)[0].astype(np.int64) - first
            array[rows[array[rows] == Verdict.KEPT]] = verdict
    result = function(task, *([item.argument] if extra else []), **arguments)
    files.folder.write_array(_verdict_file(item.written, group), verdicts)
    return result


def _verdict_file(folder: str, group: Group) -> str:
    return f"{folder}/{group.number:06d}.npy"
