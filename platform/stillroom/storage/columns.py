"""Columns by row, of tables that need not fit into memory.

A table is a folder with a file per column: texts are an Arrow IPC file with one column, numbers a
`.npy` file. Files are mapped, not read: the processes of a machine share their pages, which the
system drops when it needs the memory. `column_writer.py` writes them.
"""

import os
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
import pyarrow as pa

from stillroom.errors import UserError, one_line

T = TypeVar("T")
ITERATED_ROWS = 1024  # of a text column, in memory at a time while it is iterated


class Column(Sequence[T]):
    """Values by row. A slice of rows is a list."""

    @abstractmethod
    def value(self, row: int) -> T:
        """The value of a row from 0 to len - 1."""

    @overload
    def __getitem__(self, row: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> list[T]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> T | list[T]:
        rows = range(len(self))[row]
        return [self.value(i) for i in rows] if isinstance(rows, range) else self.value(rows)


class TextColumn(Column[str]):
    """A mapped column of texts. Pickled as its name: the other process maps the file again.

    Args:
        folder: of the file; an artifact of a remote root is fetched where it is unpickled.
        name: of the file in that folder, without `.arrow`.

    Raises:
        UserError: when there is no such file, or it is not whole.
    """

    def __init__(self, folder: os.PathLike[str], name: str):
        self.folder, self.name = folder, name
        path = Path(folder) / f"{name}.arrow"
        try:
            # The mapping outlives the open file, so that no file descriptor is kept.
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                self._batches = [
                    reader.get_batch(number).column(0)
                    for number in range(reader.num_record_batches)
                ]
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                str(path),
                f"is not a column of texts: {one_line(error, 200)}",
                "Delete its artifact's folder and run the recipe again",
            ) from error
        self._starts = list(accumulate(map(len, self._batches), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def value(self, row: int) -> str:
        batch = bisect_right(self._starts, row) - 1
        return str(self._batches[batch][row - self._starts[batch]].as_py())

    def __iter__(self) -> Iterator[str]:
        for batch in self._batches:
            for start in range(0, len(batch), ITERATED_ROWS):
                yield from batch.slice(start, ITERATED_ROWS).to_pylist()

    def __reduce__(self) -> tuple[Any, ...]:
        return TextColumn, (self.folder, self.name)


@dataclass(frozen=True)
class Lookup(Column[T]):
    """values[rows[i]] for each i: the prompt of each text by its source, for example.

    Args:
        rows: int, (n,).
    """

    values: Sequence[T]
    rows: np.ndarray

    @classmethod
    def repeated(cls, value: T, count: int) -> "Lookup[T]":
        """The same value in each row."""
        return cls((value,), np.broadcast_to(np.int8(0), count))

    def __len__(self) -> int:
        return len(self.rows)

    def value(self, row: int) -> T:
        return self.values[int(self.rows[row])]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self.rows), ITERATED_ROWS):
            for row in self.rows[start : start + ITERATED_ROWS].tolist():
                yield self.values[row]


@dataclass(frozen=True)
class Joined(Column[T]):
    """The rows of two columns, one after the other."""

    first: Sequence[T]
    second: Sequence[T]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def value(self, row: int) -> T:
        return self.first[row] if row < len(self.first) else self.second[row - len(self.first)]

    def __iter__(self) -> Iterator[T]:
        yield from self.first
        yield from self.second


@dataclass(frozen=True)
class Zipped(Column[tuple[T, T]]):
    """Pairs of the values of two columns."""

    first: Sequence[T]
    second: Sequence[T]

    def __len__(self) -> int:
        return len(self.first)

    def value(self, row: int) -> tuple[T, T]:
        return self.first[row], self.second[row]

    def __iter__(self) -> Iterator[tuple[T, T]]:
        return zip(self.first, self.second, strict=True)


@dataclass(frozen=True)
class Ragged(Column[np.ndarray]):
    """A list of numbers in each row.

    Args:
        starts: of each row's numbers in `numbers`, and the end of the last: int64, (rows + 1,).
    """

    starts: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def value(self, row: int) -> np.ndarray:
        return self.numbers[self.starts[row] : self.starts[row + 1]]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> "Ragged":
        """The same lists."""
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(starts, np.array([n for numbers in lists for n in numbers], dtype=np.int64))


class JoinedNumbers:
    """Arrays of numbers, one after the other, read by rows without joining them in memory."""

    def __init__(self, *arrays: np.ndarray):
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the rows."""
        numbers = np.empty(len(rows), dtype=np.result_type(*self.arrays))
        parts = np.searchsorted(self.starts, rows, side="right") - 1
        for part in np.unique(parts):
            here = parts == part
            numbers[here] = self.arrays[part][rows[here] - self.starts[part]]
        return numbers


@dataclass(frozen=True)
class RemainingRows:
    """The rows 0 to count - 1 without some, by their rank: a function, not a list of them.

    Args:
        without: rows, ascending, int64.
    """

    count: int
    without: np.ndarray

    def __len__(self) -> int:
        return self.count - len(self.without)

    def __getitem__(self, ranks: np.ndarray) -> np.ndarray:
        """The rows at these ranks, int64."""
        ahead = self.without - np.arange(len(self.without))  # rows that remain before each
        return ranks + np.searchsorted(ahead, ranks, side="right")
