"""Artifacts: immutable folders ROOT/STAGE/NAME-KEY/ that describe themselves.

A folder without `manifest.json` is no artifact: the manifest is written last, with the size
and SHA-256 of every file. ROOT is a local folder or whatever `pyarrow.fs` opens.
"""

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import filelock
import platformdirs
from pyarrow import fs

from stillroom.errors import UserError
from stillroom.storage.atomic import written
from stillroom.storage.object_store import (
    open_uri,
    patiently,
    put,
    sha256,
    unreachable,
    write_whole,
)

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

WORD = re.compile(r"[a-z0-9][a-z0-9._-]*")


def key_of(parts: Any) -> str:
    """Twelve hex digits of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def atomic_json(path: Path, content: Any) -> None:
    with written(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)


def cache_folder() -> Path:
    """Where copies of what lives elsewhere are kept: STILLROOM_CACHE, or the user's cache."""
    return Path(os.environ.get("STILLROOM_CACHE") or platformdirs.user_cache_dir("stillroom"))


@dataclass(frozen=True)
class Artifact(os.PathLike[str]):
    """A published folder; `path` is local, whatever the root.

    It may be sent to another machine: of a remote root the files are there when it arrives.
    """

    ref: str
    stage: str
    name: str
    key: str
    path: Path
    manifest: dict[str, Any]
    root: str

    def __fspath__(self) -> str:
        return str(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        if "://" in self.root:
            return _arrived, (self.root, self.stage, self.name, self.key)
        return Artifact, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def created(self) -> str:
        return str(self.manifest["created"])

    @property
    def bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())


@dataclass
class Draft:
    """An artifact in the making. What is in `path` survives a crash, for a stage to go on with.

    `done` is the artifact itself where another process finished it first.
    """

    store: "Store"
    stage: str
    name: str
    key: str
    path: Path
    done: Artifact | None = None

    @property
    def running(self) -> str:
        """Where under the root a run keeps what it goes on from, until the artifact is there."""
        return f".train/{self.stage}-{self.path.name}"

    def publish(self, made_by: dict[str, Any]) -> Artifact:
        """Makes the draft an artifact, all at once.

        Raises:
            UserError: when storage fails. The draft stays, and the next try only brings it there.
        """
        self._finish(made_by)
        self.done = self.store._bring(self)
        return self.done

    @property
    def finished(self) -> bool:
        """Whether nothing is left but to bring it to its place."""
        return (self.path / MANIFEST).is_file()

    def _finish(self, made_by: dict[str, Any]) -> None:
        for half_written in self.path.rglob("*.partial"):  # by a process that was killed
            half_written.unlink()
        files = {
            path.relative_to(self.path).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        manifest = {
            "made_by": made_by,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            "files": files,
            # In object storage every writer has a folder of its own, and the manifest says whose
            # files count: two machines that publish the same key can never mix theirs.
            **({} if self.store.local else {"data": uuid.uuid4().hex}),
        }
        atomic_json(self.path / MANIFEST, manifest)


class Store:
    """The artifacts under one root.

    Args:
        root: a folder, or a URI such as `s3://bucket/prefix` or `gs://bucket/prefix`.

    Raises:
        UserError: when nothing can open the root.
    """

    def __init__(self, root: str):
        self.root = root
        self.local = "://" not in root or root.startswith("file://")
        if self.local:
            self.base = str(Path(root.removeprefix("file://")).expanduser().absolute())
            self.fs: Any = fs.LocalFileSystem()
            self.work = Path(self.base)
        else:
            self.fs, self.base = open_uri(root, f"root: {root}")
            # Drafts and copies of a remote root live in a folder of this machine.
            own = hashlib.sha256(root.encode()).hexdigest()[:12]
            self.work = cache_folder() / "roots" / own

    # --- reading ----------------------------------------------------------------------------

    def exists(self, stage: str, name: str, key: str) -> bool:
        return self._read_manifest(stage, f"{name}-{key}") is not None

    def open(self, stage: str, name: str, key: str) -> Artifact:
        """The artifact, its files there with the sizes that its manifest says.

        Raises:
            UserError: when it is missing, incomplete or altered.
        """
        folder = f"{name}-{key}"
        ref = f"{stage}/{folder}"
        manifest = self._read_manifest(stage, folder)
        if manifest is None:
            raise UserError(
                f"{self.root}/{ref}", "there is no such artifact", "Run the recipe that makes it"
            )
        path = self._fetched(stage, folder, manifest)
        artifact = Artifact(ref, stage, name, key, path, manifest, self.root)
        here = path.resolve()
        for file, entry in manifest["files"].items():
            there = path / file
            # A link anywhere on the way would lead out of the folder.
            linked = there.resolve() != here / file
            if linked or not there.is_file() or there.stat().st_size != entry["bytes"]:
                raise _altered(path, file)
        return artifact

    def find(self, ref: str) -> Artifact:
        """`STAGE/NAME-KEY`, or the newest of `STAGE/NAME`.

        Raises:
            UserError: when there is none; it lists what there is.
        """
        stage, _, name = ref.partition("/")
        listed = self.published(stage) if WORD.fullmatch(stage) else []
        for artifact in listed:  # newest first
            if artifact.ref == ref or artifact.name == name:
                return self.open(artifact.stage, artifact.name, artifact.key)
        known = ", ".join(sorted({f"{a.stage}/{a.name}" for a in listed})) or "none"
        raise UserError(
            ref, f"is not under {self.root}; of that stage there is {known}", "Run its recipe first"
        )

    def published(self, stage: str | None = None, name: str | None = None) -> list[Artifact]:
        """Published artifacts, newest first. Of a remote root, nothing but manifests is read."""
        found = []
        stages = [stage] if stage else self._folders("")
        for one in stages:
            for folder in self._folders(one):
                its_name, _, key = folder.rpartition("-")
                manifest = self._read_manifest(one, folder) if its_name else None
                if manifest is not None and name in (None, its_name):
                    path = self.work / one / folder
                    ref = f"{one}/{folder}"
                    found.append(Artifact(ref, one, its_name, key, path, manifest, self.root))
        return sorted(found, key=lambda artifact: artifact.created, reverse=True)

    def free_bytes(self) -> int | None:
        """Free space of a local root; None for object storage."""
        if not self.local:
            return None
        there = self.work
        while not there.exists():
            there = there.parent
        return shutil.disk_usage(there).free

    # --- writing ----------------------------------------------------------------------------

    @contextmanager
    def draft(self, stage: str, name: str, key: str) -> Iterator[Draft]:
        """A folder to make the artifact in.

        Whoever comes second waits, and then finds `draft.done`. An unpublished draft stays for
        the next try.
        """
        for word in (stage, name, key):
            if not WORD.fullmatch(word):
                raise UserError(word, "cannot name an artifact", "Use a-z, 0-9, '.', '_' and '-'")
        folder = f"{name}-{key}"
        path = self.work / ".drafts" / stage / folder
        lock = self.work / ".locks" / f"{stage}-{folder}.lock"
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UserError(
                self.root, f"cannot be written: {fault.strerror}", "Name another root"
            ) from fault
        held = filelock.FileLock(lock)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            log.info("%s/%s is being made by another process; waiting for it", stage, folder)
            held.acquire()
        try:
            done = self.open(stage, name, key) if self.exists(stage, name, key) else None
            path.mkdir(parents=True, exist_ok=True)
            draft = Draft(self, stage, name, key, path, done)
            if done is None and draft.finished:
                draft.done = self._bring(draft)
            yield draft
            if self.exists(stage, name, key):
                shutil.rmtree(path, ignore_errors=True)
                self.forget(draft.running)
        finally:
            held.release()

    def place(self, path: str) -> str:
        """Where something that is no artifact goes, under the root, in the root's own form."""
        return str(self.work / path) if self.local else f"{self.root.rstrip('/')}/{path}"

    def forget(self, path: str) -> None:
        """Deletes what `place` gave room to."""
        place = f"{self.base}/{path}"
        if patiently(lambda: self.fs.get_file_info(place)).type == fs.FileType.Directory:
            patiently(lambda: self.fs.delete_dir(place))

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artifact: the manifest first, so that no half of it looks whole."""
        folder = f"{self.base}/{artifact.ref}"
        patiently(lambda: self.fs.delete_file(f"{folder}/{MANIFEST}"))
        patiently(lambda: self.fs.delete_dir(folder))
        shutil.rmtree(self.work / artifact.ref, ignore_errors=True)

    def _bring(self, draft: Draft) -> Artifact:
        """Puts a finished draft where artifacts are, its manifest last."""
        final = f"{draft.stage}/{draft.name}-{draft.key}"
        if self.local:
            target = self.work / final
            target.parent.mkdir(parents=True, exist_ok=True)
            # What a crash or a hand left there without a manifest is no artifact.
            shutil.rmtree(target, ignore_errors=True)
            os.replace(draft.path, target)
        else:
            content = (draft.path / MANIFEST).read_bytes()
            manifest = json.loads(content)
            where = f"{self.base}/{final}"
            try:
                for file, entry in manifest["files"].items():
                    place = f"{where}/{manifest['data']}/{file}"
                    if put(draft.path / file, self.fs, place) != entry:
                        raise _altered(draft.path, file)
                write_whole(content, self.fs, f"{where}/{MANIFEST}")
            except OSError as fault:
                raise UserError(
                    f"{self.root}/{final}",
                    f"cannot be written: {' '.join(str(fault).split())}. All of it lies in "
                    f"{draft.path}",
                    "Mend the storage, and run the same command here: nothing is made again",
                ) from fault
        return self.open(draft.stage, draft.name, draft.key)

    # --- inside -----------------------------------------------------------------------------

    def _folders(self, under: str) -> list[str]:
        selector = fs.FileSelector(f"{self.base}/{under}".rstrip("/"), allow_not_found=True)
        try:
            infos = patiently(lambda: self.fs.get_file_info(selector))
        except OSError as fault:
            raise unreachable(f"root: {self.root}", fault) from fault
        return [i.base_name for i in infos if WORD.fullmatch(i.base_name)]

    def _read_manifest(self, stage: str, folder: str) -> dict[str, Any] | None:
        path = f"{self.base}/{stage}/{folder}/{MANIFEST}"

        def read() -> bytes | None:
            if self.fs.get_file_info(path).type != fs.FileType.File:
                return None
            with self.fs.open_input_stream(path) as stream:
                return bytes(stream.read())

        try:
            content = patiently(read)
        except OSError as fault:
            raise unreachable(f"root: {self.root}", fault) from fault
        if content is None:
            return None
        try:
            manifest = json.loads(content)
            for file, entry in manifest["files"].items():
                parts = PurePosixPath(file).parts
                if file.startswith("/") or ".." in parts or not isinstance(entry["bytes"], int):
                    raise ValueError(file)
                if not isinstance(entry["sha256"], str):
                    raise ValueError(file)
            if not (isinstance(manifest["created"], str) and isinstance(manifest["made_by"], dict)):
                raise ValueError("created")
            if not self.local and not re.fullmatch("[0-9a-f]{32}", manifest["data"]):
                raise ValueError("data")
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise UserError(
                path, "is no manifest of ours", "Delete the folder and run the recipe again"
            ) from fault
        return dict(manifest)

    def _fetched(self, stage: str, folder: str, manifest: dict[str, Any]) -> Path:
        """Where the files lie on this machine; those of a remote root are copied and verified."""
        path = self.work / stage / folder
        if self.local:
            return path
        path = path / manifest["data"]
        lock = self.work / ".locks" / f"{manifest['data']}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):  # a machine's workers all want it at once
            if not path.is_dir():
                self._fetch(stage, folder, manifest, path)
        return path

    def _fetch(self, stage: str, folder: str, manifest: dict[str, Any], path: Path) -> None:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        for file, entry in manifest["files"].items():
            there = partial / file
            there.parent.mkdir(parents=True, exist_ok=True)
            remote = f"{self.base}/{stage}/{folder}/{manifest['data']}/{file}"
            local = fs.LocalFileSystem()
            copy = functools.partial(fs.copy_files, remote, str(there), self.fs, local)
            try:
                patiently(copy)
            except OSError as fault:
                shutil.rmtree(partial)
                raise _altered(Path(f"{self.root}/{stage}/{folder}"), file) from fault
            if sha256(there) != entry["sha256"]:
                shutil.rmtree(partial)
                raise _altered(Path(f"{self.root}/{stage}/{folder}"), file)
        partial.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)


def _arrived(root: str, stage: str, name: str, key: str) -> Artifact:
    return Store(root).open(stage, name, key)


def verify(path: Path, manifest: dict[str, Any]) -> None:
    """Compares every file in a folder with its SHA-256 in the manifest.

    Raises:
        UserError: naming the first that differs or is missing.
    """
    for file, entry in manifest["files"].items():
        if not (path / file).is_file() or sha256(path / file) != entry["sha256"]:
            raise _altered(path, file)


def _altered(path: Path, file: str) -> UserError:
    return UserError(
        str(path / file),
        "is not what its artifact's manifest says: missing, altered or cut short",
        "Delete the artifact's folder and run the recipe again",
    )
