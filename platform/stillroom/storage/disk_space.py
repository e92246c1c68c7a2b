"""What a full disk is reported as: the folder, its free space, and how much is missing."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from stillroom.errors import UserError


def full_disk_error(folder: Path, needed: int | None = None) -> UserError:
    """The error for a disk that has no room for what a stage writes.

    Args:
        needed: bytes that were to be written, where they are known.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    amount = "" if needed is None else f", and {_in_mb(needed)} were to be written"
    return UserError(
        str(folder),
        f"is on a full disk: {_in_mb(free)} are free{amount}",
        "Free some space, or name a root on a larger disk; then run the same command again",
    )


@contextlib.contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turns the system's error of a full disk, also one of a Ray task, into `full_disk_error`.

    Args:
        folder: that is named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray's error is of the same type
        if cause.errno != errno.ENOSPC:
            raise
        named = Path(cause.filename).parent if isinstance(cause.filename, str) else folder
        raise full_disk_error(named.absolute()) from error


def require_free_space(folder: Path, needed: int) -> None:
    """Checks that a disk has room for `needed` bytes, before they are written.

    Raises:
        UserError: when it has not.
    """
    if shutil.disk_usage(folder).free < needed:
        raise full_disk_error(folder, needed)


def _in_mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
