"""Atomic writes: files are complete or absent, even if the process dies."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file to write into, which appears under its name when the block ends.

    It replaces a file of that name. If the block raises, nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
