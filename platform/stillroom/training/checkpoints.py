"""A run's checkpoints under the root: whole or not there, whoever dies in between.

A checkpoint is a folder `STEP-TRY/`, into which each worker puts its files and, when all of them
are there, a list of these with sizes and digests, `RANK-of-WORLD.json`. With the last worker's
list it is whole. TRY tells a run's workers from those of a try before it, who may still write.
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

from stillroom.errors import UserError
from stillroom.storage.artifacts import Store, cache_folder
from stillroom.storage.object_store import patiently, put, sha256, unreachable, write_whole

FOLDER = re.compile(r"(\d{9})-[0-9a-f]+")

ABSENT = fs.FileType.NotFound

LIST = re.compile(r"\d+-of-(\d+)\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """Those of one run.

    Args:
        path: under the root.
    """

    store: Store
    path: str

    @property
    def base(self) -> str:
        return f"{self.store.base}/{self.path}"

    def newest(self, holding: str = "") -> str | None:
        """The name of the last that is whole, every file as its lists say; None where none is.

        Args:
            holding: a file that it has, or there is none.

        Raises:
            UserError: when the storage cannot be read.
        """
        try:
            for name in reversed(self.whole()):
                path = f"{self.base}/{name}/{holding}".rstrip("/")
                if patiently(functools.partial(self.store.fs.get_file_info, path)).type == ABSENT:
                    return None
                if _intact(self.opened(name)):
                    return name
                log.warning("the checkpoint %s/%s is damaged, and left out", self.path, name)
                self.closed(name)
        except OSError as fault:
            raise unreachable(f"root: {self.store.root}", fault) from fault
        return None

    def opened(self, name: str) -> Path:
        """The folder of a checkpoint on this machine, into which an object store's is copied.

        Raises:
            UserError: when the storage cannot be read.
        """
        if self.store.local:
            return Path(self.base) / name
        there = self._copy(name)
        there.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{there}.lock"):  # the workers of a machine share it
            if not there.is_dir():
                partial = there.with_name(f"{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # of one that died over it
                partial.mkdir(parents=True)
                places = f"{self.base}/{name}", str(partial), self.store.fs, fs.LocalFileSystem()
                try:
                    patiently(lambda: fs.copy_files(*places))
                except OSError as fault:
                    raise unreachable(f"root: {self.store.root}", fault) from fault
                partial.rename(there)
        return there

    def closed(self, name: str) -> None:
        """Deletes what `opened` copied to this machine."""
        if not self.store.local:
            shutil.rmtree(self._copy(name), ignore_errors=True)

    def _copy(self, name: str) -> Path:
        return cache_folder() / "checkpoints" / self.path / name

    def whole(self) -> list[str]:
        """Names of those that have every worker's list, in the order of their steps."""
        files: dict[str, list[str]] = {}
        for info in self._infos(recursive=True):
            folder, _, file = info.path.removeprefix(f"{self.base}/").partition("/")
            if FOLDER.fullmatch(folder) and (told := LIST.fullmatch(file)):
                files.setdefault(folder, []).append(told[1])
        return sorted(
            folder
            for folder, worlds in files.items()
            if any(worlds.count(world) == int(world) for world in worlds)
        )

    def prune(self, keep: int) -> None:
        """Deletes what is older than the last `keep` whole ones, whole or not."""
        if not (kept := self.whole()[-keep:]):
            return
        for info in self._infos(recursive=False):
            told = FOLDER.fullmatch(info.base_name)
            if told and told[1] < kept[0][:9] and info.type == fs.FileType.Directory:
                self.store.forget(f"{self.path}/{info.base_name}")

    def _infos(self, *, recursive: bool) -> list[Any]:
        selector = fs.FileSelector(self.base, allow_not_found=True, recursive=recursive)
        found: list[Any] = patiently(lambda: self.store.fs.get_file_info(selector))
        return found


def _intact(folder: Path) -> bool:
    """Whether every file is what its list says."""
    try:
        for path in folder.iterdir():
            if LIST.fullmatch(path.name):
                for file, entry in json.loads(path.read_bytes())["files"].items():
                    if sha256(folder / file) != entry["sha256"]:
                        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


class Saver:
    """One worker's part in them. It writes its files here, and goes on while a thread brings them
    to the root.

    Args:
        attempt: hex digits, the same on every worker and in no other try.
    """

    def __init__(self, to: Checkpoints, attempt: str, rank: int, world: int, keep: int):
        self.to, self.attempt, self.rank, self.world, self.keep = to, attempt, rank, world, keep
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self.waiting: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Called on every worker; waits for the checkpoint before, if that is still on its way.

        Args:
            write: puts this worker's files into a folder.

        Raises:
            UserError: when the one before could not be stored.
        """
        self.wait()
        folder = Path(tempfile.mkdtemp(prefix=f"stillroom-{step}-"))
        write(folder)
        self.waiting = self.pool.submit(self._store, folder, step)

    def wait(self) -> None:
        """Returns when this worker's part of the last one is stored.

        Raises:
            UserError: when it could not be; it names where on this machine its files are.
        """
        if self.waiting is not None:
            self.waiting.result()
            self.waiting = None

    def _store(self, folder: Path, step: int) -> None:
        where = f"{self.to.base}/{step:09d}-{self.attempt}"
        storage = self.to.store.fs
        try:
            files = {
                path.relative_to(folder).as_posix(): put(
                    path, storage, f"{where}/{path.relative_to(folder).as_posix()}"
                )
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            content = json.dumps({"step": step, "files": files}).encode()
            write_whole(content, storage, f"{where}/{self.rank}-of-{self.world}.json")
        except OSError as fault:
            raise UserError(
                f"{self.to.store.root}/{self.to.path}",
                f"the checkpoint of step {step} cannot be written: "
                f"{' '.join(str(fault).split())}. Worker {self.rank}'s part of it lies in {folder}",
                "Mend the storage, and run the same command: it goes on from the checkpoint before",
            ) from fault
        shutil.rmtree(folder)
        if self.rank == 0:
            try:
                self.to.prune(self.keep)
            except OSError as fault:  # the next one prunes what this one could not
                log.warning("old checkpoints stay: %s", " ".join(str(fault).split()))
