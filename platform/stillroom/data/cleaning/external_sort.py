"""External sorting: sorted runs of records in files, read one range of keys at a time.

Tasks on any machine write runs, each under a name of its own. The ranges are known before, so that
a run's writer knows where each begins in it, and a reader of a range reads that part and no more.
What it gets depends neither on the runs nor on their order.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stillroom.storage.shared_folder import SharedFolder

KEY_SPACE = 1 << 64  # keys are uint64
MAX_COLUMNS = 4
RECORD_BYTES = 8  # of each column
PARALLEL_READS = 16  # from an object store


@dataclass(frozen=True)
class RunSlice:
    """Consecutive records of a run."""

    name: str
    columns: int
    start: int
    stop: int


@dataclass(frozen=True)
class SortedRun:
    """A file of records of uint64 columns, sorted by the first, the key.

    Attributes:
        offsets: where each range begins, and the end of the last: uint32, (ranges + 1,).
    """

    name: str
    columns: int
    offsets: np.ndarray

    def slice(self, number: int) -> RunSlice:
        """The records of a range."""
        start, stop = self.offsets[number : number + 2].tolist()
        return RunSlice(self.name, self.columns, start, stop)

    def whole(self) -> RunSlice:
        """All records."""
        return RunSlice(self.name, self.columns, 0, int(self.offsets[-1]))


@dataclass(frozen=True)
class SortedRuns:
    """Runs over the same ranges."""

    runs: Sequence[SortedRun] = ()

    def slices(self, number: int) -> list[RunSlice]:
        """The parts of a range."""
        slices = (run.slice(number) for run in self.runs)
        return [part for part in slices if part.start < part.stop]


class RunWriter:
    """Writes records as sorted runs NAME-0, NAME-1, …; memory holds one of them.

    Args:
        borders: the first key of each range, ascending, uint64; no key is below the first.
        max_records: of a run, about.
    """

    def __init__(self, folder: SharedFolder, name: str, borders: np.ndarray, max_records: int):
        self.folder, self.name, self.borders = folder, name, borders
        self.max_records = max_records
        self._runs: list[SortedRun] = []
        self._pending: list[list[np.ndarray]] = []
        self._records = 0

    def add(self, *columns: np.ndarray) -> None:
        """Adds records of at most MAX_COLUMNS columns, the key first."""
        if len(columns[0]):
            self._pending.append([column.astype(np.uint64, copy=False) for column in columns])
            self._records += len(columns[0])
            if self._records >= self.max_records:
                self._write()

    def finish(self) -> list[SortedRun]:
        """Writes what is left; returns all runs."""
        if self._records:
            self._write()
        return self._runs

    def _write(self) -> None:
        columns = [np.concatenate(parts) for parts in zip(*self._pending, strict=True)]
        self._pending, self._records = [], 0
        order = np.argsort(columns[0], kind="stable")
        records = np.stack([column[order] for column in columns], axis=1)
        begins = np.searchsorted(records[:, 0], self.borders)
        assert begins[0] == 0, "a key is below all ranges"
        offsets = np.append(begins, len(records)).astype(np.uint32)
        run = SortedRun(f"{self.name}-{len(self._runs)}", len(columns), offsets)
        self.folder.write(run.name, records.data)
        self._runs.append(run)


def read_records(folder: SharedFolder, slices: Sequence[RunSlice]) -> np.ndarray:
    """Records of several runs, (columns, records), sorted by key and second column.

    Without records the array is (MAX_COLUMNS, 0).
    """
    if not slices:
        return np.zeros((MAX_COLUMNS, 0), dtype=np.uint64)

    def read(part: RunSlice) -> np.ndarray:
        width = part.columns * RECORD_BYTES
        content = folder.read(part.name, part.start * width, (part.stop - part.start) * width)
        return np.frombuffer(content, dtype=np.uint64).reshape(-1, part.columns)

    parts: Iterable[np.ndarray]
    if folder.remote and len(slices) > 1:
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            parts = list(pool.map(read, slices))
    else:
        parts = map(read, slices)
    records = np.concatenate(list(parts)).T
    keys = (records[1], records[0]) if len(records) > 1 else (records[0],)
    return records[:, np.lexsort(keys)]


def hash_borders(records: int, max_records: int) -> np.ndarray:
    """Ranges of all keys, of about `max_records` each if keys are hashes; for `RunWriter`."""
    count = max(1, -(-records // max_records))
    return np.array([KEY_SPACE * i // count for i in range(count)], dtype=np.uint64)


def row_borders(start: int, stop: int, width: int) -> np.ndarray:
    """Ranges of `width` keys each, from `start` to `stop`; for `RunWriter`."""
    return np.arange(start, max(stop, start + 1), width, dtype=np.uint64)
