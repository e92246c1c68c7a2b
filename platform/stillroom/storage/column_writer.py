"""Writes tables of columns as `columns.py` maps them; memory holds a batch of texts."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

BATCH_ROWS, BATCH_BYTES = 1 << 15, 1 << 25  # the text that reaches either ends its record batch


class TableWriter:
    """Writes a folder with a file per column, by appending to them.

    Args:
        texts: names of columns of texts.
        numbers: name → type of columns of numbers; (type, (n,)) of n numbers in each row.
    """

    def __init__(self, folder: Path, *, texts: Sequence[str], numbers: Mapping[str, DTypeLike]):
        folder.mkdir(parents=True, exist_ok=True)
        self._files = ExitStack()
        self._columns: dict[str, _TextWriter | _NumberWriter] = {
            **{name: _TextWriter(folder / f"{name}.arrow") for name in texts},
            **{
                name: _NumberWriter(folder / f"{name}.npy", dtype)
                for name, dtype in numbers.items()
            },
        }
        for column in self._columns.values():
            self._files.callback(column.close)

    def append(self, **values: Any) -> None:
        """Appends to the named columns: Arrow arrays of texts, and numbers."""
        for name, column_values in values.items():
            self._columns[name].append(column_values)

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()


class _TextWriter:
    """Its file depends on the texts alone, not on how many of them come at a time."""

    def __init__(self, path: Path):
        schema = pa.schema({"text": pa.string()})
        self._file = pa.ipc.new_file(str(path), schema)
        self._pending: list[pa.Array] = []
        self._rows = self._bytes = 0  # of the pending texts

    def append(self, texts: pa.Array | pa.ChunkedArray) -> None:
        for array in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
            sizes = np.asarray(pc.binary_length(array), dtype=np.int64)
            start = 0
            while start < len(array):
                by_bytes = np.searchsorted(
                    np.cumsum(sizes[start : start + BATCH_ROWS]), BATCH_BYTES - self._bytes
                )
                count = min(BATCH_ROWS - self._rows, int(by_bytes) + 1, len(array) - start)
                self._pending.append(array.slice(start, count))
                self._rows += count
                self._bytes += int(sizes[start : start + count].sum())
                start += count
                if self._rows == BATCH_ROWS or self._bytes >= BATCH_BYTES:
                    self._write()

    def _write(self) -> None:
        texts = pa.concat_arrays(self._pending)
        self._file.write_batch(pa.record_batch([texts], names=["text"]))
        self._pending, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        if self._rows:
            self._write()
        self._file.close()


class _NumberWriter:
    def __init__(self, path: Path, dtype: DTypeLike):
        self._file = path.open("wb")
        self._dtype, self._rows = np.dtype(dtype), 0
        self._write_header()

    def append(self, numbers: Any) -> None:
        array = np.ascontiguousarray(numbers, dtype=self._dtype.base)
        self._file.write(array.data)
        self._rows += len(array)

    def _write_header(self) -> None:
        # NumPy pads headers, so that one with more rows takes the same place.
        shape = (self._rows, *self._dtype.shape)
        header = {"descr": self._dtype.base.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()
