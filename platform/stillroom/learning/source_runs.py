"""The source of each row of the training data, in memory that does not grow with the rows."""

from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 20  # rows that are read at a time
NO_SOURCE = -1  # its rows are in no batch


@dataclass(frozen=True)
class RowRanges:
    """Ascending rows in ranges, by their rank.

    Attributes:
        first: row of each range, int64, (ranges,).
        ranks: of the first row of each range, and the number of all rows, int64, (ranges + 1,).
    """

    first: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return int(self.ranks[-1])

    def __getitem__(self, ranks: np.ndarray) -> np.ndarray:
        """The rows at these ranks, int64."""
        ranges = np.searchsorted(self.ranks, ranks, side="right") - 1
        return self.first[ranges] + (ranks - self.ranks[ranges])


@dataclass(frozen=True)
class SourceRuns:
    """The number of each row's source, kept as runs of rows with the same one.

    A corpus has a few runs per source, since its rows are in the order of the sources.

    Attributes:
        starts: first row of each run, and the number of all rows, int64, (runs + 1,).
        numbers: of the source of each run, int64, (runs,).
    """

    starts: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, sources: np.ndarray) -> "SourceRuns":
        """The same numbers, which may be a mapped array: it is read in parts."""
        changes = [np.empty(0, dtype=np.int64)]
        for start in range(0, len(sources) - 1, CHUNK):
            part = sources[start : start + CHUNK + 1]
            changes.append(start + 1 + np.flatnonzero(part[1:] != part[:-1]))
        first = [0] if len(sources) else []
        starts = np.concatenate([first, *changes, [len(sources)]]).astype(np.int64)
        return cls(starts, np.asarray(sources[starts[:-1]], dtype=np.int64))

    @classmethod
    def single(cls, rows: int) -> "SourceRuns":
        """All rows of source 0."""
        return cls.of(np.broadcast_to(np.int64(0), rows))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The source of each of these rows, int64."""
        return self.numbers[np.searchsorted(self.starts, rows, side="right") - 1]

    def joined(self, other: "SourceRuns") -> "SourceRuns":
        """These rows, and then the other's."""
        starts = np.concatenate([self.starts[:-1], len(self) + other.starts])
        return SourceRuns(starts, np.concatenate([self.numbers, other.numbers]))

    def followed_by(self, number: int, rows: int) -> "SourceRuns":
        """These rows, and then rows of one source."""
        return self.joined(SourceRuns(np.array([0, rows]), np.array([number]))) if rows else self

    def without(self, rows: np.ndarray) -> "SourceRuns":
        """The same, with these rows of no source."""
        rows = np.unique(rows)
        starts = np.unique(np.concatenate([self.starts[:-1], rows, rows + 1]))
        starts = starts[starts < len(self)]
        numbers = np.where(np.isin(starts, rows), NO_SOURCE, self[starts])
        return SourceRuns(np.append(starts, len(self)), numbers)

    def rows_of(self, number: int) -> RowRanges:
        """The rows of a source."""
        runs = self.numbers == number
        sizes = np.diff(self.starts)[runs]
        return RowRanges(self.starts[:-1][runs], np.concatenate([[0], np.cumsum(sizes)]))
