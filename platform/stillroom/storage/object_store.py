"""Object storage by URI: any file system that `pyarrow.fs` opens, with retries that back off."""

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

from stillroom.errors import UserError, one_line

ATTEMPTS = 6  # of a request: about 20 seconds with the waits between them
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
BLOCK = 1 << 20  # bytes of one read
Result = TypeVar("Result")
log = logging.getLogger(__name__)


def open_uri(uri: str, where: str) -> tuple[Any, str]:
    """The file system of a URI such as `s3://bucket/prefix`, and the path in it.

    AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, where set, replaces Amazon's endpoint.

    Args:
        where: the place that the error names.

    Raises:
        UserError: when it cannot be reached or there is no such bucket.
    """
    parts = urlsplit(uri)
    try:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if parts.scheme == "s3" and endpoint and "endpoint_override" not in parts.query:
            url = urlsplit(endpoint)
            opened = fs.S3FileSystem(
                endpoint_override=url.netloc, scheme=url.scheme, allow_bucket_creation=False
            )
            path = f"{parts.netloc}{parts.path}"
        else:
            opened, path = fs.FileSystem.from_uri(uri)
        if opened.get_file_info(path.split("/")[0]).type == fs.FileType.NotFound:
            raise ValueError("there is no such bucket")
    except (OSError, ValueError) as error:
        raise unreachable_error(where, error) from error
    return opened, path.rstrip("/")


def unreachable_error(where: str, error: BaseException) -> UserError:
    """The error for storage that cannot be opened because of `error`."""
    return UserError(
        where,
        f"cannot be opened: {one_line(error)}",
        "Correct the name, the credentials or the endpoint",
    )


def with_retries(call: Callable[[], Result], attempts: int | None = None) -> Result:
    """Calls a function until storage answers, with growing waits between attempts; returns the
    result.

    Raises:
        OSError: the error of the last attempt; at once, when a file is missing or access denied.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient),
        stop=tenacity.stop_after_attempt(attempts or ATTEMPTS),
        wait=tenacity.wait_exponential_jitter(
            initial=FIRST_WAIT_S, max=LONGEST_WAIT_S, jitter=FIRST_WAIT_S
        ),
        before_sleep=_log_retry,
        reraise=True,
    )(call)


def upload(local: Path, filesystem: Any, path: str) -> dict[str, Any]:
    """Copies a file to storage, and reads it back to verify it.

    Args:
        path: of the copy, in the file system of pyarrow.

    Returns:
        Its manifest entry: `bytes` and `sha256`.

    Raises:
        OSError: when storage refuses it, or returns other content.
    """
    entry = {"bytes": local.stat().st_size, "sha256": sha256(local)}

    def attempt() -> None:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        # pyarrow's own copy of a file reports nothing when an upload fails at its end.
        with local.open("rb") as source, filesystem.open_output_stream(path) as stream:
            shutil.copyfileobj(source, stream, BLOCK)
        if remote_sha256(filesystem, path) != entry["sha256"]:
            raise OSError(f"{path} differs from what was written")

    with_retries(attempt)
    return entry


def write_bytes_atomically(content: bytes, filesystem: Any, path: str) -> None:
    """Writes a small file that is complete or absent, even if the process dies.

    Raises:
        OSError: when storage refuses it.
    """
    # An object appears when it is complete; a file appears when it is opened.
    needs_move = isinstance(filesystem, fs.LocalFileSystem)

    def attempt() -> None:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        written_path = f"{path}.partial" if needs_move else path
        with filesystem.open_output_stream(written_path) as stream:
            stream.write(content)
        if needs_move:
            filesystem.move(written_path, path)

    with_retries(attempt)


def remote_sha256(filesystem: Any, path: str) -> str:
    """SHA-256 of a file in storage.

    Raises:
        OSError: when it does not exist.
    """
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


def _log_retry(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None and state.next_action is not None
    reason = one_line(state.outcome.exception())
    log.warning("storage: %s; retrying in %.1f s", reason[:200], state.next_action.sleep)
