"""A run's checkpoints under the artifact root: complete or absent, even if a process dies.

A checkpoint is a folder `STEP-ATTEMPT/`. Each worker puts its files into it, and then
`RANK-of-WORLD.json`, a list of these files with sizes and digests. The checkpoint is complete with
the last worker's list. ATTEMPT separates them from the files of an earlier attempt's workers, which
may still write.
"""

import functools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from pyarrow import fs

from stillroom.errors import UserError, one_line
from stillroom.storage.artifacts import Store, cache_folder
from stillroom.storage.object_store import (
    sha256,
    unreachable_error,
    upload,
    with_retries,
    write_bytes_atomically,
)

FOLDER_NAME = re.compile(r"(\d{9})-[0-9a-f]+")
FILE_LIST = re.compile(r"\d+-of-(\d+)\.json")
NOT_FOUND = fs.FileType.NotFound
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        path: their folder, under the store's root.
    """

    store: Store
    path: str

    @property
    def base(self) -> str:
        """Their folder, for the store's file system."""
        return f"{self.store.base}/{self.path}"

    def newest(self, with_file: str = "") -> str | None:
        """The name of the newest checkpoint that is complete and undamaged.

        Args:
            with_file: a file that it must contain. Returns None if it does not.

        Raises:
            UserError: when the storage cannot be read.
        """
        try:
            for name in reversed(self.complete()):
                path = f"{self.base}/{name}/{with_file}".rstrip("/")
                info = with_retries(functools.partial(self.store.fs.get_file_info, path))
                if info.type == NOT_FOUND:
                    return None
                if _intact(self.fetch(name)):
                    return name
                log.warning("the checkpoint %s/%s is damaged, and is ignored", self.path, name)
                self.drop_copy(name)
        except OSError as error:
            raise unreachable_error(f"root: {self.store.root}", error) from error
        return None

    def fetch(self, name: str) -> Path:
        """A checkpoint's folder on this machine; copied here first from an object store.

        Raises:
            UserError: when the storage cannot be read.
        """
        if self.store.local:
            return Path(self.base) / name
        copy = self._copy(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{copy}.lock"):  # the workers of a machine share the copy
            if not copy.is_dir():
                partial = copy.with_name(f"{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that died
                partial.mkdir(parents=True)
                source, local = f"{self.base}/{name}", fs.LocalFileSystem()
                try:
                    with_retries(lambda: fs.copy_files(source, str(partial), self.store.fs, local))
                except OSError as error:
                    raise unreachable_error(f"root: {self.store.root}", error) from error
                partial.rename(copy)
        return copy

    def drop_copy(self, name: str) -> None:
        """Deletes the copy that `fetch` made on this machine."""
        if not self.store.local:
            shutil.rmtree(self._copy(name), ignore_errors=True)

    def _copy(self, name: str) -> Path:
        return cache_folder() / "checkpoints" / self.path / name

    def complete(self) -> list[str]:
        """Names of the checkpoints that have every worker's list, in the order of their steps."""
        worlds: dict[str, list[str]] = {}  # folder → the world of each list in it
        for info in self._list(recursive=True):
            folder, _, file = info.path.removeprefix(f"{self.base}/").partition("/")
            if FOLDER_NAME.fullmatch(folder) and (match := FILE_LIST.fullmatch(file)):
                worlds.setdefault(folder, []).append(match[1])
        return sorted(
            folder
            for folder, counts in worlds.items()
            if any(counts.count(world) == int(world) for world in counts)
        )

    def prune(self, keep: int) -> None:
        """Deletes every checkpoint, complete or not, older than the newest `keep` complete ones."""
        if not (kept := self.complete()[-keep:]):
            return
        oldest_step = kept[0][:9]
        for info in self._list(recursive=False):
            match = FOLDER_NAME.fullmatch(info.base_name)
            if match and match[1] < oldest_step and info.type == fs.FileType.Directory:
                self.store.delete_folder(f"{self.path}/{info.base_name}")

    def _list(self, *, recursive: bool) -> list[Any]:
        selector = fs.FileSelector(self.base, allow_not_found=True, recursive=recursive)
        infos: list[Any] = with_retries(lambda: self.store.fs.get_file_info(selector))
        return infos


def _intact(folder: Path) -> bool:
    """Whether every file has the digest in its list."""
    try:
        for path in folder.iterdir():
            if FILE_LIST.fullmatch(path.name):
                for file, entry in json.loads(path.read_bytes())["files"].items():
                    if sha256(folder / file) != entry["sha256"]:
                        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


class CheckpointSaver:
    """Saves one worker's part of each checkpoint: to this machine first, and from there to the
    root by a thread, while training continues.

    Args:
        attempt: hex digits, the same on every worker, and different in every attempt.
        keep: how many complete checkpoints stay.
    """

    def __init__(self, checkpoints: Checkpoints, attempt: str, rank: int, world: int, keep: int):
        self.checkpoints, self.attempt, self.keep = checkpoints, attempt, keep
        self.rank, self.world = rank, world
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self.pending: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Saves a checkpoint; called on every worker. Waits for the upload of the one before.

        Args:
            write: writes this worker's files into a folder.

        Raises:
            UserError: when the one before could not be stored.
        """
        self.wait()
        folder = Path(tempfile.mkdtemp(prefix=f"stillroom-{step}-"))
        write(folder)
        self.pending = self.pool.submit(self._upload, folder, step)

    def wait(self) -> None:
        """Waits until this worker's part of the last checkpoint is stored.

        Raises:
            UserError: when it could not be stored; it names the files' folder on this machine.
        """
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def _upload(self, folder: Path, step: int) -> None:
        target = f"{self.checkpoints.base}/{step:09d}-{self.attempt}"
        storage = self.checkpoints.store.fs
        try:
            files = {
                path.relative_to(folder).as_posix(): upload(
                    path, storage, f"{target}/{path.relative_to(folder).as_posix()}"
                )
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            content = json.dumps({"step": step, "files": files}).encode()
            write_bytes_atomically(content, storage, f"{target}/{self.rank}-of-{self.world}.json")
        except OSError as error:
            raise UserError(
                f"{self.checkpoints.store.root}/{self.checkpoints.path}",
                f"the checkpoint of step {step} cannot be written: "
                f"{one_line(error)}. Worker {self.rank}'s part of it is in {folder}",
                "Repair the storage, and run the same command: it resumes from the checkpoint "
                "before",
            ) from error
        shutil.rmtree(folder)
        if self.rank == 0:
            try:
                self.checkpoints.prune(self.keep)
            except OSError as error:  # the next save prunes again
                log.warning("old checkpoints could not be deleted: %s", one_line(error))
