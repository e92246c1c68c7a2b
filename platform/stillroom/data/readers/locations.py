"""Places → files: paths, globs, folders, object storage and the hub; opened, and fingerprinted.

A place is a path, a folder, a glob (`*`, `?`, `[…]`, `**`), any of these under `s3://` or `gs://`,
or `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`, a data set of the Hugging Face hub. AWS_ENDPOINT_URL
names another server that speaks S3.
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

HUB = "hub:"

HUGE = 1 << 40

DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

DOCUMENTS = (".md", ".markdown", ".txt")

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # none of .parquet, which compresses by itself

BUFFER = 1 << 20  # bytes

COMMIT = re.compile(r"[0-9a-f]{40}")


class Form(NamedTuple):
    """A file's kind, such as `.jsonl`, and the codec around it."""

    kind: str
    compression: str | None


class HubName(NamedTuple):
    name: str
    revision: str | None
    config: str | None
    split: str


def form_of(file: str) -> Form:
    name = "" if file.startswith(HUB) else file.lower()
    for ending, codec in COMPRESSIONS.items():
        if name.endswith(ending):
            return Form(os.path.splitext(name.removesuffix(ending))[1], codec)
    return Form(os.path.splitext(name)[1], None)


def hub_name(place: str) -> HubName:
    """The parts of `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`; the split is train where none is said.

    Raises:
        UserError: when it is not of that form.
    """
    name, *more = place.removeprefix(HUB).split(":")
    name, _, revision = name.partition("@")
    if not name or len(more) > 2:
        raise UserError(
            place, "names no data set", "Write hub:NAME, or hub:NAME@REVISION:CONFIG:SPLIT"
        )
    config, split = (*more, "", "")[:2]
    return HubName(name, revision or None, config or None, split or "train")


def find_files(place: str, kinds: tuple[str, ...] = DATA) -> list[str]:
    """The files at a place, sorted; of a folder those of `kinds`, hidden ones left out.

    Raises:
        UserError: when there is none, or it cannot be reached.
    """
    if place.startswith(HUB):
        hub_name(place)
        return [place]
    opened, path, scheme = _opened(place)
    try:
        found = opened.get_file_info(path)
        if found.type == fs.FileType.File:
            return [place]
        files = None
        if found.type == fs.FileType.Directory:
            every = _within(opened, path, recursive=True)
            files = [f for f in every if form_of(f).kind in kinds and not _hidden(f, path)]
        elif _is_glob(path):
            # From the last folder that stands before the first wildcard.
            base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
            deep = "/" in path[len(base) :].lstrip("/")
            top = base or ("/" if path.startswith("/") else ".")
            every = [f.removeprefix("./") for f in _within(opened, top, recursive=deep)]
            files = [f for f in every if _matches(f.split("/"), path.split("/"))]
    except OSError as fault:
        raise UserError(place, f"cannot be listed: {fault}", "Look at its permissions") from fault
    if files is None:
        raise UserError(place, "does not exist", "Correct the path")
    if not files:
        raise UserError(place, "holds no file to read", f"Use {', '.join(kinds)}")
    return sorted(scheme + file for file in files)


@contextlib.contextmanager
def opened_for_reading(file: str) -> Iterator[BinaryIO]:
    """A file's bytes as a stream, unpacked.

    Raises:
        UserError: when it does not exist or cannot be read.
    """
    opened, path, _ = _opened(file)
    with _told(file):
        codec = form_of(file).compression
        with opened.open_input_stream(path, compression=codec, buffer_size=BUFFER) as raw:
            yield io.BufferedReader(raw, BUFFER)  # type: ignore[type-var]


@contextlib.contextmanager
def opened_for_seeking(file: str) -> Iterator[Any]:
    """A file as Parquet's reader wants it.

    Raises:
        UserError: as above.
    """
    opened, path, _ = _opened(file)
    with _told(file), opened.open_input_file(path) as raw:
        yield raw


def size(place: str) -> int:
    """Bytes of a file, packed as it is; of a data set of the hub, more than can be told: HUGE."""
    if place.startswith(HUB):
        return HUGE
    opened, path, _ = _opened(place)
    return max(0, opened.get_file_info(path).size or 0)


def fingerprint(place: str, kinds: tuple[str, ...] = DATA) -> str:
    """What changes when the files at a place do.

    Of local files their contents count, in object storage names, sizes and times of writing, and
    of the hub's data sets the commit.

    Raises:
        UserError: when there is nothing at the place.
    """
    if place.startswith(HUB):
        return _commit(place)
    if "://" in place:
        return _listing_hash(find_files(place, kinds))
    path = Path(place).expanduser()
    if path.is_file():
        return content_hash(path)
    sums = hashlib.sha256()
    for file in find_files(place, kinds):
        sums.update(f"{file}\0{content_hash(Path(file))}\0".encode())
    return sums.hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a local file, or of all of a folder's file names and contents."""
    if not path.exists():
        raise UserError(str(path), "does not exist", "Correct the path in the recipe's corpus")
    sums = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        sums.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            while block := opened.read(BUFFER):
                sums.update(block)
    return sums.hexdigest()


def _listing_hash(files: list[str]) -> str:
    sums = hashlib.sha256()
    for file in files:
        opened, path, _ = _opened(file)
        info = opened.get_file_info(path)
        sums.update(f"{file}\0{info.size}\0{info.mtime_ns}\0".encode())
    return sums.hexdigest()


def _commit(place: str) -> str:
    wanted = hub_name(place)
    if wanted.revision and COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    if Path(wanted.name).is_dir():  # which is what `datasets` would read
        return content_hash(Path(wanted.name))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(HfApi().dataset_info(wanted.name, revision=wanted.revision).sha)
    except (HfHubHTTPError, HFValidationError, OSError) as fault:
        raise UserError(
            place,
            "is no data set that the hub gives",
            f"Correct the name, unset HF_HUB_OFFLINE, or pin a commit: hub:{wanted.name}@COMMIT",
        ) from fault


def _opened(place: str) -> tuple[Any, str, str]:
    """(file system, path in it, what stands before a path to make a place of it)."""
    if "://" not in place:
        return fs.LocalFileSystem(), os.path.expanduser(place), ""
    scheme = place.partition("://")[0] + "://"
    # A wildcard such as `?` is no query of the URI.
    bucket = re.split(r"[*?\[]", place, maxsplit=1)[0]
    opened, start = open_uri(bucket, place)
    rest = place[len(bucket) :]
    slash = "/" if rest and bucket.endswith("/") else ""
    return opened, start + slash + rest, scheme


def _within(opened: Any, folder: str, *, recursive: bool) -> list[str]:
    selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    return [f.path for f in opened.get_file_info(selector) if f.type == fs.FileType.File]


def _hidden(file: str, folder: str) -> bool:
    """Whether a part of the path below the folder begins as what programs keep for themselves."""
    return any(part.startswith((".", "_")) for part in file[len(folder) :].split("/") if part)


def _is_glob(path: str) -> bool:
    return any(letter in path for letter in "*?[")


def _matches(file: list[str], glob: list[str]) -> bool:
    """Whether a path's parts are of a glob's, whose wildcards stay within one, but for `**`."""
    if not glob:
        return not file
    if glob[0] == "**":
        return any(_matches(file[i:], glob[1:]) for i in range(len(file) + 1))
    return bool(file) and fnmatch.fnmatchcase(file[0], glob[0]) and _matches(file[1:], glob[1:])


@contextlib.contextmanager
def _told(file: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(file, "does not exist", "Correct the path") from None
    except (OSError, EOFError) as fault:
        raise UserError(file, f"cannot be read: {fault}", "Look at the file") from fault
