"""Artifacts: immutable folders ROOT/STAGE/NAME-KEY/ that describe themselves.

A folder without `manifest.json` is not an artifact: the manifest is written last. ROOT is a local
folder or any file system that `pyarrow.fs` opens.
"""

import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import filelock
import platformdirs
from pyarrow import fs

from stillroom.errors import UserError, one_line
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.manifest import MANIFEST, altered_error, build_manifest, parse_manifest
from stillroom.storage.object_store import (
    open_uri,
    sha256,
    unreachable_error,
    upload,
    with_retries,
    write_bytes_atomically,
)
from stillroom.storage.root import is_local

log = logging.getLogger(__name__)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def key_of(parts: Any) -> str:
    """Twelve hex digits of the SHA-256 of `parts` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cache_folder() -> Path:
    """The folder for copies of remote files: STILLROOM_CACHE, or the user's cache."""
    return Path(os.environ.get("STILLROOM_CACHE") or platformdirs.user_cache_dir("stillroom"))


@dataclass(frozen=True)
class Artifact(os.PathLike[str]):
    """A published folder.

    It may be pickled to another machine: unpickling fetches the files of a remote root.

    Attributes:
        ref: `STAGE/NAME-KEY`.
        path: of the files on this machine, for any root.
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
            return _open_artifact, (self.root, self.stage, self.name, self.key)
        return Artifact, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def created(self) -> str:
        """ISO time of publication, in UTC."""
        return str(self.manifest["created"])

    @property
    def size_bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())


@dataclass
class Draft:
    """An artifact in the making.

    Attributes:
        path: the folder to fill. It survives a crash, so that a stage can resume.
        artifact: the published artifact; set before `publish` if another process was faster.
    """

    store: "Store"
    stage: str
    name: str
    key: str
    path: Path
    artifact: Artifact | None = None

    @property
    def checkpoint_folder(self) -> str:
        """The folder under the root for training checkpoints; deleted once the artifact exists."""
        return f".train/{self.stage}-{self.path.name}"

    @property
    def work_folder(self) -> str:
        """The folder under the root for working files of tasks on many machines; as the former."""
        return f".work/{self.stage}-{self.path.name}"

    def publish(self, made_by: dict[str, Any]) -> Artifact:
        """Turns the draft into an artifact, in one step.

        Raises:
            UserError: when storage fails. The draft stays, and the next try only copies it.
        """
        for half_written in self.path.rglob("*.partial"):  # by a process that was killed
            half_written.unlink()
        manifest = build_manifest(self.path, made_by, remote=not self.store.local)
        atomic_write_json(self.path / MANIFEST, manifest)
        self.artifact = self.store.publish_draft(self)
        return self.artifact

    @property
    def complete(self) -> bool:
        """Whether all files are written and only publication is left."""
        return (self.path / MANIFEST).is_file()


class Store:
    """The artifacts under one root.

    Args:
        root: a folder, or a URI such as `s3://bucket/prefix` or `gs://bucket/prefix`.

    Attributes:
        local: the root is a folder of this machine.
        fs, base: the file system of the root, and the root's path there.
        local_folder: the root itself, or the folder of this machine for a remote root's drafts and
            copies.

    Raises:
        UserError: when the root cannot be opened.
    """

    def __init__(self, root: str):
        self.root = root
        self.local = is_local(root)
        if self.local:
            self.base = str(Path(root.removeprefix("file://")).expanduser().absolute())
            self.fs: Any = fs.LocalFileSystem()
            self.local_folder = Path(self.base)
        else:
            self.fs, self.base = open_uri(root, f"root: {root}")
            digest = hashlib.sha256(root.encode()).hexdigest()[:12]
            self.local_folder = cache_folder() / "roots" / digest

    # --- reading ----------------------------------------------------------------------------

    def exists(self, stage: str, name: str, key: str) -> bool:
        """Whether the artifact is published."""
        return self._read_manifest(stage, f"{name}-{key}") is not None

    def open(self, stage: str, name: str, key: str) -> Artifact:
        """The artifact, with its files on this machine and of the sizes in its manifest.

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
        path = self._local_path(stage, folder, manifest)
        artifact = Artifact(ref, stage, name, key, path, manifest, self.root)
        resolved = path.resolve()
        for file, entry in manifest["files"].items():
            on_disk = path / file
            # A link anywhere in the path would lead out of the folder.
            linked = on_disk.resolve() != resolved / file
            if linked or not on_disk.is_file() or on_disk.stat().st_size != entry["bytes"]:
                raise altered_error(path, file)
        return artifact

    def find(self, ref: str) -> Artifact:
        """The artifact `STAGE/NAME-KEY`, or the newest one of `STAGE/NAME`.

        Raises:
            UserError: when there is none; it lists the names that exist.
        """
        stage, _, name = ref.partition("/")
        artifacts = self.list_artifacts(stage) if NAME.fullmatch(stage) else []
        for artifact in artifacts:  # newest first
            if artifact.ref == ref or artifact.name == name:
                return self.open(artifact.stage, artifact.name, artifact.key)
        known = ", ".join(sorted({f"{a.stage}/{a.name}" for a in artifacts})) or "none"
        raise UserError(
            ref,
            f"is not under {self.root}. Artifacts of that stage: {known}",
            "Run its recipe first",
        )

    def list_artifacts(self, stage: str | None = None, name: str | None = None) -> list[Artifact]:
        """Published artifacts, newest first. Reads manifests only; nothing is fetched.

        Args:
            stage, name: only of this stage, of this name; None: of all.
        """
        artifacts = []
        for in_stage in [stage] if stage else self._folders(""):
            for folder in self._folders(in_stage):
                its_name, _, key = folder.rpartition("-")
                manifest = self._read_manifest(in_stage, folder) if its_name else None
                if manifest is not None and name in (None, its_name):
                    path = self.local_folder / in_stage / folder
                    ref = f"{in_stage}/{folder}"
                    artifacts.append(
                        Artifact(ref, in_stage, its_name, key, path, manifest, self.root)
                    )
        return sorted(artifacts, key=lambda artifact: artifact.created, reverse=True)

    def free_bytes(self) -> int | None:
        """Free space of a local root; None for object storage."""
        if not self.local:
            return None
        folder = self.local_folder
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    # --- writing ----------------------------------------------------------------------------

    @contextmanager
    def draft(self, stage: str, name: str, key: str) -> Iterator[Draft]:
        """A folder to make the artifact in, locked for this process.

        A second process waits, and then finds `draft.artifact` set. An unpublished draft stays for
        the next try.

        Raises:
            UserError: for a name that no folder can have, or a root that cannot be written.
        """
        for part in (stage, name, key):
            if not NAME.fullmatch(part):
                raise UserError(part, "cannot name an artifact", "Use a-z, 0-9, '.', '_' and '-'")
        folder = f"{name}-{key}"
        path = self.local_folder / ".drafts" / stage / folder
        lock = self.local_folder / ".locks" / f"{stage}-{folder}.lock"
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                self.root, f"cannot be written: {error.strerror}", "Name another root"
            ) from error
        draft_lock = filelock.FileLock(lock)
        try:
            draft_lock.acquire(timeout=0)
        except filelock.Timeout:
            log.info("waiting for another process that is making %s/%s", stage, folder)
            draft_lock.acquire()
        try:
            artifact = self.open(stage, name, key) if self.exists(stage, name, key) else None
            path.mkdir(parents=True, exist_ok=True)
            draft = Draft(self, stage, name, key, path, artifact)
            if artifact is None and draft.complete:
                draft.artifact = self.publish_draft(draft)
            yield draft
            if self.exists(stage, name, key):
                shutil.rmtree(path, ignore_errors=True)
                self.delete_folder(draft.checkpoint_folder)
                self.delete_folder(draft.work_folder)
        finally:
            draft_lock.release()

    def resolve(self, path: str) -> str:
        """The path or URI of something under the root that is not an artifact."""
        return str(self.local_folder / path) if self.local else f"{self.root.rstrip('/')}/{path}"

    def delete_folder(self, path: str) -> None:
        """Deletes a folder under the root that is not an artifact, if it exists."""
        folder = f"{self.base}/{path}"
        if with_retries(lambda: self.fs.get_file_info(folder)).type == fs.FileType.Directory:
            with_retries(lambda: self.fs.delete_dir(folder))

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artifact, its manifest first, so that a partial deletion is visible."""
        folder = f"{self.base}/{artifact.ref}"
        with_retries(lambda: self.fs.delete_file(f"{folder}/{MANIFEST}"))
        with_retries(lambda: self.fs.delete_dir(folder))
        shutil.rmtree(self.local_folder / artifact.ref, ignore_errors=True)

    def publish_draft(self, draft: Draft) -> Artifact:
        """Moves or copies a complete draft to the root, its manifest last."""
        final = f"{draft.stage}/{draft.name}-{draft.key}"
        if self.local:
            target = self.local_folder / final
            target.parent.mkdir(parents=True, exist_ok=True)
            # A folder without a manifest, left by a crash or made by hand, is not an artifact.
            shutil.rmtree(target, ignore_errors=True)
            os.replace(draft.path, target)
        else:
            content = (draft.path / MANIFEST).read_bytes()
            manifest = json.loads(content)
            folder = f"{self.base}/{final}"
            try:
                for file, entry in manifest["files"].items():
                    target_file = f"{folder}/{manifest['data']}/{file}"
                    if upload(draft.path / file, self.fs, target_file) != entry:
                        raise altered_error(draft.path, file)
                write_bytes_atomically(content, self.fs, f"{folder}/{MANIFEST}")
            except OSError as error:
                raise UserError(
                    f"{self.root}/{final}",
                    f"cannot be written: {one_line(error)}. The complete draft is in {draft.path}",
                    "Repair the storage and run the same command on this machine: only the copy is "
                    "repeated",
                ) from error
        return self.open(draft.stage, draft.name, draft.key)

    # --- inside -----------------------------------------------------------------------------

    def _folders(self, under: str) -> list[str]:
        selector = fs.FileSelector(f"{self.base}/{under}".rstrip("/"), allow_not_found=True)
        try:
            infos = with_retries(lambda: self.fs.get_file_info(selector))
        except OSError as error:
            raise unreachable_error(f"root: {self.root}", error) from error
        folders = (info for info in infos if info.type == fs.FileType.Directory)
        return [info.base_name for info in folders if NAME.fullmatch(info.base_name)]

    def _read_manifest(self, stage: str, folder: str) -> dict[str, Any] | None:
        path = f"{self.base}/{stage}/{folder}/{MANIFEST}"

        def read() -> bytes | None:
            if self.fs.get_file_info(path).type != fs.FileType.File:
                return None
            with self.fs.open_input_stream(path) as stream:
                return bytes(stream.read())

        try:
            content = with_retries(read)
        except OSError as error:
            raise unreachable_error(f"root: {self.root}", error) from error
        return None if content is None else parse_manifest(content, path, remote=not self.local)

    def _local_path(self, stage: str, folder: str, manifest: dict[str, Any]) -> Path:
        """The files' folder on this machine; a remote root's files are copied and verified."""
        path = self.local_folder / stage / folder
        if self.local:
            return path
        path = path / manifest["data"]
        lock = self.local_folder / ".locks" / f"{manifest['data']}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):  # all workers of a machine call this at the same time
            if not path.is_dir():
                self._fetch(stage, folder, manifest, path)
        return path

    def _fetch(self, stage: str, folder: str, manifest: dict[str, Any], path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        needed = sum(int(entry["bytes"]) for entry in manifest["files"].values())
        free = shutil.disk_usage(partial).free
        if free < needed:
            raise UserError(
                str(partial),
                f"has {free / 1e9:.1f} GB free, and {stage}/{folder} takes {needed / 1e9:.1f} GB",
                "Free some space, or set STILLROOM_CACHE to a folder of a larger disk",
            )
        for file, entry in manifest["files"].items():
            copied = partial / file
            copied.parent.mkdir(parents=True, exist_ok=True)
            remote = f"{self.base}/{stage}/{folder}/{manifest['data']}/{file}"
            local = fs.LocalFileSystem()
            copy = functools.partial(fs.copy_files, remote, str(copied), self.fs, local)
            try:
                with_retries(copy)
            except OSError as error:
                shutil.rmtree(partial)
                raise altered_error(Path(f"{self.root}/{stage}/{folder}"), file) from error
            if sha256(copied) != entry["sha256"]:
                shutil.rmtree(partial)
                raise altered_error(Path(f"{self.root}/{stage}/{folder}"), file)
        os.replace(partial, path)


def _open_artifact(root: str, stage: str, name: str, key: str) -> Artifact:
    return Store(root).open(stage, name, key)
