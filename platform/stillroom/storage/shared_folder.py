"""A folder that all machines of a run read and write: on a shared file system, or in a bucket."""

import errno
import functools
import io
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from stillroom.errors import UserError, one_line
from stillroom.storage.disk_space import full_disk_error
from stillroom.storage.object_store import open_uri, with_retries

Content = TypeVar("Content")


@dataclass(frozen=True)
class SharedFolder:
    """Files that appear under their name when they are whole. Plain data that can be pickled.

    The same file may be written several times, also at once, by a task and by its repetition.

    Args:
        location: a folder, or a URI such as `s3://bucket/prefix`.
    """

    location: str

    def write(self, name: str, content: Any) -> None:
        """Writes a file of bytes, or of anything that gives its buffer.

        Raises:
            UserError: when the disk is full, or storage refuses it.
        """
        filesystem, base = self._opened()
        path, size = f"{base}/{name}", memoryview(content).nbytes

        def upload() -> None:
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
            if filesystem.get_file_info(path).size != size:
                raise OSError(f"{path} has not the {size} bytes that were written")

        try:
            if isinstance(filesystem, fs.LocalFileSystem):
                _write_local(Path(path), content)
            else:
                with_retries(upload)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise full_disk_error(Path(path).parent, size) from error
            raise self._error(name, "cannot be written", error) from error

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Writes an array as NumPy saves it."""
        content = io.BytesIO()
        np.save(content, array)
        self.write(name, content.getbuffer())

    def read(self, name: str, start: int = 0, size: int | None = None) -> Any:
        """The bytes of a file, or `size` of them from `start` on, as a buffer.

        Raises:
            UserError: when there is no such file, or it is shorter.
        """

        return self._with_errors(name, lambda: self._read(name, start, size))

    def read_array(self, name: str) -> np.ndarray:
        """An array that `write_array` wrote; writable."""

        def read() -> np.ndarray:
            array: np.ndarray = np.load(io.BytesIO(self._read(name)))
            return array

        return self._with_errors(name, read)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table in Parquet, or some of its columns."""

        def read() -> pa.Table:
            with self._open(name) as file:
                return pq.read_table(file, columns=columns)

        return self._with_errors(name, read)

    def delete(self, name: str = "") -> None:
        """Deletes a folder in it, or the whole, if it exists."""
        filesystem, base = self._opened()
        folder = f"{base}/{name}".rstrip("/")
        if isinstance(filesystem, fs.LocalFileSystem):
            shutil.rmtree(folder, ignore_errors=True)
        elif with_retries(lambda: filesystem.get_file_info(folder)).type == fs.FileType.Directory:
            with_retries(lambda: filesystem.delete_dir(folder))

    @property
    def remote(self) -> bool:
        """Whether it is in an object store."""
        return not isinstance(self._opened()[0], fs.LocalFileSystem)

    def _opened(self) -> tuple[Any, str]:
        return _open_location(self.location)

    def _open(self, name: str) -> Any:
        filesystem, base = self._opened()
        return filesystem.open_input_file(f"{base}/{name}")

    def _read(self, name: str, start: int = 0, size: int | None = None) -> Any:
        with self._open(name) as file:
            count = file.size() - start if size is None else size
            content = file.read_at(count, start)
        if len(content) != count:
            raise ValueError(f"it ends after {start + len(content)} bytes")
        return content

    def _with_errors(self, name: str, read: Callable[[], Content]) -> Content:
        try:
            return with_retries(read)
        except (OSError, ValueError) as error:  # what is no array or no table is a ValueError
            raise self._error(name, "cannot be read", error) from error

    def _error(self, name: str, problem: str, error: Exception) -> UserError:
        return UserError(
            f"{self.location}/{name}",
            f"is a working file that {problem}: {one_line(error, 200)}",
            "Check the storage, and that no other process deletes it; then run the recipe again",
        )


@functools.lru_cache(maxsize=16)
def _open_location(location: str) -> tuple[Any, str]:
    if "://" in location:
        return open_uri(location, location)
    return fs.LocalFileSystem(), str(Path(location).absolute())


def _write_local(path: Path, content: Any) -> None:
    """Writes a file by a name of its own: a repeated task may write the same one at the moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
