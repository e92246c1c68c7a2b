"""Locations of data → files; opens and fingerprints them.

A location is a path, a folder, a glob (`*`, `?`, `[…]`, `**`), any of these under `s3://` or
`gs://`, or `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`, a data set of the Hugging Face hub.
AWS_ENDPOINT_URL names another server that speaks S3.
"""

import contextlib
import fnmatch
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pyarrow import fs

from stillroom.errors import UserError
from stillroom.storage.object_store import open_uri

HUB_PREFIX = "hub:"
UNKNOWN_SIZE = 1 << 40  # bytes; of data sets of the hub
DATA_EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
DATASETS_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")  # of `datasets`, no rows
DOCUMENT_EXTENSIONS = (".md", ".markdown", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # not around .parquet, which compresses itself
BUFFER_BYTES = 1 << 20  # bytes
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


class FileFormat(NamedTuple):
    """The format of a file, from its name.

    Attributes:
        extension: such as `.jsonl`, in lower case, without that of the compression.
        compression: pyarrow's name of the codec; None without one.
    """

    extension: str
    compression: str | None


class HubDataset(NamedTuple):
    """A data set of the Hugging Face hub."""

    name: str
    revision: str | None
    config: str | None
    split: str


def file_format(file: str) -> FileFormat:
    """The format of a file, by its name; a data set of the hub has none."""
    name = "" if file.startswith(HUB_PREFIX) else file.lower()
    for ending, codec in COMPRESSIONS.items():
        if name.endswith(ending):
            return FileFormat(os.path.splitext(name.removesuffix(ending))[1], codec)
    return FileFormat(os.path.splitext(name)[1], None)


def parse_hub_location(location: str) -> HubDataset:
    """Parses `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`; the default split is train.

    Raises:
        UserError: when it is not of that form.
    """
    name, *rest = location.removeprefix(HUB_PREFIX).split(":")
    name, _, revision = name.partition("@")
    if not name or len(rest) > 2:
        raise UserError(
            location, "names no data set", "Write hub:NAME, or hub:NAME@REVISION:CONFIG:SPLIT"
        )
    config, split = (*rest, "", "")[:2]
    return HubDataset(name, revision or None, config or None, split or "train")


def find_files(location: str, extensions: tuple[str, ...] = DATA_EXTENSIONS) -> list[str]:
    """The files at a location, sorted.

    Args:
        location: a single file is returned with any extension.
        extensions: of files in a folder; hidden ones are left out.

    Raises:
        UserError: when there is no file, or the location cannot be reached.
    """
    if location.startswith(HUB_PREFIX):
        parse_hub_location(location)
        return [location]
    file_system, path, scheme = _resolve(location)
    try:
        info = file_system.get_file_info(path)
        if info.type == fs.FileType.File:
            return [location]
        files = None
        if info.type == fs.FileType.Directory:
            files = [
                file
                for file in _list_files(file_system, path, recursive=True)
                if file_format(file).extension in extensions
                and not _is_hidden(file, path)
                and file.rpartition("/")[2] not in DATASETS_FILES
            ]
        elif _is_glob(path):
            files = _glob(file_system, path)
    except OSError as error:
        raise UserError(location, f"cannot be listed: {error}", "Check its permissions") from error
    if files is None:
        raise UserError(location, "does not exist", "Correct the path")
    if not files:
        raise UserError(location, "has no file to read", f"Use {', '.join(extensions)}")
    return sorted(scheme + file for file in files)


@contextlib.contextmanager
def open_stream(file: str) -> Iterator[BinaryIO]:
    """Opens a file as a stream of decompressed bytes.

    Raises:
        UserError: when it does not exist or cannot be read.
    """
    file_system, path, _ = _resolve(file)
    with _read_errors(file):
        codec = file_format(file).compression
        with file_system.open_input_stream(
            path, compression=codec, buffer_size=BUFFER_BYTES
        ) as raw:
            yield io.BufferedReader(raw, BUFFER_BYTES)  # type: ignore[type-var]


@contextlib.contextmanager
def open_seekable(file: str) -> Iterator[Any]:
    """Opens a file for random access, as Parquet's reader needs it.

    Raises:
        UserError: when it does not exist or cannot be read.
    """
    file_system, path, _ = _resolve(file)
    with _read_errors(file), file_system.open_input_file(path) as raw:
        yield raw


def size_bytes(location: str) -> int:
    """The size of a file as it is stored; UNKNOWN_SIZE for a data set of the hub."""
    if location.startswith(HUB_PREFIX):
        return UNKNOWN_SIZE
    file_system, path, _ = _resolve(location)
    return max(0, file_system.get_file_info(path).size or 0)


def fingerprint(location: str, extensions: tuple[str, ...] = DATA_EXTENSIONS) -> str:
    """A hash that changes when the files at a location change.

    It covers the contents of local files; names, sizes and times of writing in object storage;
    and the commit of the hub's data sets.

    Raises:
        UserError: when there is nothing at the location.
    """
    if location.startswith(HUB_PREFIX):
        return _hub_commit(location)
    if "://" in location:
        return _listing_hash(find_files(location, extensions))
    path = Path(location).expanduser()
    if path.is_file():
        return content_hash(path)
    digest = hashlib.sha256()
    for file in find_files(location, extensions):
        digest.update(f"{file}\0{content_hash(Path(file))}\0".encode())
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a local file, or of the names and contents of all files in a folder.

    Raises:
        UserError: when it does not exist.
    """
    if not path.exists():
        raise UserError(str(path), "does not exist", "Correct the path in the recipe's corpus")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            while block := opened.read(BUFFER_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _listing_hash(files: list[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        file_system, path, _ = _resolve(file)
        info = file_system.get_file_info(path)
        digest.update(f"{file}\0{info.size}\0{info.mtime_ns}\0".encode())
    return digest.hexdigest()


def _hub_commit(location: str) -> str:
    dataset = parse_hub_location(location)
    if dataset.revision and COMMIT_HASH.fullmatch(dataset.revision):
        return dataset.revision
    if Path(dataset.name).is_dir():  # `datasets` prefers a local folder of that name
        return content_hash(Path(dataset.name))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(HfApi().dataset_info(dataset.name, revision=dataset.revision).sha)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            location,
            "is not a data set that can be loaded from the hub",
            f"Correct the name, unset HF_HUB_OFFLINE, or pin a commit: hub:{dataset.name}@COMMIT",
        ) from error


def _resolve(location: str) -> tuple[Any, str, str]:
    """(file system, path in it, prefix that turns such a path into a location)."""
    if "://" not in location:
        return fs.LocalFileSystem(), os.path.expanduser(location), ""
    scheme = location.partition("://")[0] + "://"
    # Split first: the wildcard `?` would be taken for the query of a URI.
    bucket = re.split(r"[*?\[]", location, maxsplit=1)[0]
    file_system, start = open_uri(bucket, location)
    rest = location[len(bucket) :]
    slash = "/" if rest and bucket.endswith("/") else ""
    return file_system, start + slash + rest, scheme


def _list_files(file_system: Any, folder: str, *, recursive: bool) -> list[str]:
    selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    infos = file_system.get_file_info(selector)
    return [info.path for info in infos if info.type == fs.FileType.File]


def _glob(file_system: Any, pattern: str) -> list[str]:
    # From the last folder before the first wildcard.
    base = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    recursive = "/" in pattern[len(base) :].lstrip("/")
    top = base or ("/" if pattern.startswith("/") else ".")
    files = [file.removeprefix("./") for file in _list_files(file_system, top, recursive=recursive)]
    return [file for file in files if _matches(file.split("/"), pattern.split("/"))]


def _is_hidden(file: str, folder: str) -> bool:
    """Whether a part of the path below the folder begins with a dot or an underscore."""
    return any(part.startswith((".", "_")) for part in file[len(folder) :].split("/") if part)


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _matches(file: list[str], glob: list[str]) -> bool:
    """Whether the parts of a path match those of a glob; only `**` spans several parts."""
    if not glob:
        return not file
    if glob[0] == "**":
        return any(_matches(file[i:], glob[1:]) for i in range(len(file) + 1))
    return bool(file) and fnmatch.fnmatchcase(file[0], glob[0]) and _matches(file[1:], glob[1:])


@contextlib.contextmanager
def _read_errors(file: str) -> Iterator[None]:
    """Turns errors of reading a file into UserErrors."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(file, "does not exist", "Correct the path") from None
    except (OSError, EOFError) as error:
        raise UserError(file, f"cannot be read: {error}", "Check the file") from error
