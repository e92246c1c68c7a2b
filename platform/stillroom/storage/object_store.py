"""Object storage by URI: whatever `pyarrow.fs` opens. What fails is tried again, ever later."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import tenacity
from pyarrow import fs

from stillroom.errors import UserError

ATTEMPTS = 6  # of a request: with the waits between them, some 20 seconds

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0

BLOCK = 1 << 20  # bytes read at once

Made = TypeVar("Made")

log = logging.getLogger(__name__)


def open_uri(uri: str, where: str) -> tuple[Any, str]:
    """The file system of a URI such as `s3://bucket/prefix`, and the path in it.

    Amazon's endpoint is replaced by AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, where one is set.

    Raises:
        UserError: at `where`, when it cannot be reached or there is no such bucket.
    """
    parts = urlsplit(uri)
    try:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if parts.scheme == "s3" and endpoint and "endpoint_override" not in parts.query:
            place = urlsplit(endpoint)
            opened = fs.S3FileSystem(
                endpoint_override=place.netloc, scheme=place.scheme, allow_bucket_creation=False
            )
            path = f"{parts.netloc}{parts.path}"
        else:
            opened, path = fs.FileSystem.from_uri(uri)
        if opened.get_file_info(path.split("/")[0]).type == fs.FileType.NotFound:
            raise ValueError("there is no such bucket")
    except (OSError, ValueError) as fault:
        raise unreachable(where, fault) from fault
    return opened, path.rstrip("/")


def unreachable(where: str, fault: BaseException) -> UserError:
    reason = " ".join(str(fault).split())
    return UserError(
        where,
        f"cannot be opened: {reason}",
        "Correct the name, the credentials or the endpoint",
    )


def patiently(call: Callable[[], Made], attempts: int | None = None) -> Made:
    """What the call returns; while storage fails it, it is made again.

    Raises:
        OSError: of the last attempt.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_passes),
        stop=tenacity.stop_after_attempt(attempts or ATTEMPTS),
        wait=tenacity.wait_exponential_jitter(
            initial=FIRST_WAIT_S, max=LONGEST_WAIT_S, jitter=FIRST_WAIT_S
        ),
        before_sleep=_say_again,
        reraise=True,
    )(call)


def put(local: Path, to: Any, path: str) -> dict[str, Any]:
    """Copies a file to storage and reads it back.

    Returns:
        Its size in bytes and its SHA-256.

    Raises:
        OSError: when storage refuses it, or does not give back what it was given.
    """
    entry = {"bytes": local.stat().st_size, "sha256": sha256(local)}

    def attempt() -> None:
        to.create_dir(path.rpartition("/")[0], recursive=True)
        # pyarrow's own copy of a file says nothing where an upload fails at its end.
        with local.open("rb") as source, to.open_output_stream(path) as stream:
            shutil.copyfileobj(source, stream, BLOCK)
        if digest(to, path) != entry["sha256"]:
            raise OSError(f"{path} is not what was written there")

    patiently(attempt)
    return entry


def write_whole(content: bytes, to: Any, path: str) -> None:
    """A small file that is whole or absent, whenever the process dies.

    Raises:
        OSError: when storage refuses it.
    """
    # An object appears when all of it is there; a file does when it is opened.
    moves = isinstance(to, fs.LocalFileSystem)

    def attempt() -> None:
        to.create_dir(path.rpartition("/")[0], recursive=True)
        place = f"{path}.partial" if moves else path
        with to.open_output_stream(place) as stream:
            stream.write(content)
        if moves:
            to.move(place, path)

    patiently(attempt)


def digest(of: Any, path: str) -> str:
    """SHA-256 of a file in storage.

    Raises:
        OSError: when it is not there.
    """
    found = hashlib.sha256()
    with of.open_input_stream(path) as stream:
        while block := stream.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _passes(fault: BaseException) -> bool:
    """Whether it may be gone at the next attempt."""
    return isinstance(fault, OSError) and not isinstance(fault, FileNotFoundError | PermissionError)


def _say_again(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None and state.next_action is not None
    reason = " ".join(str(state.outcome.exception()).split())
    log.warning("storage: %s; again in %.1f s", reason[:200], state.next_action.sleep)
