"""A teacher's vectors that are under the root already: found by text, and copied.

A change of the corpus makes another `vectors` artifact; only its new texts need the teacher.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stillroom.encoders.contract import CONTRACT_FILE, BaseContract
from stillroom.encoders.usable_vectors import UnusableVectorError, require_usable
from stillroom.encoders.vectors.stored import (
    ORDER_FILE,
    POSITIONS_FILE,
    StoredVectors,
    shard_path,
)
from stillroom.errors import UserError
from stillroom.stages.vectors.digests import (
    SORTED_DIGESTS_FILE,
    SORTED_ROWS_FILE,
    VECTORS_VERSION,
    DigestIndex,
)
from stillroom.storage.artifacts import Artifact, Store
from stillroom.storage.manifest import altered_error
from stillroom.storage.object_store import sha256
from stillroom.training.history import METRICS_FILE

SHARED_STAGE = "shared-vectors"  # of artifacts that `stillroom vectors` publishes and imports
STAGES = ("vectors", SHARED_STAGE)
NOWHERE = -1

log = logging.getLogger(__name__)


def teacher_identity(teacher: Artifact) -> str:
    """32 hex digits of everything that decides a teacher's vectors, the same under every root.

    That is its files by their SHA-256, its contract, the fingerprint of its base (an adapter leaves
    the base's weights where they are), and the version of the code. The names of its space and of
    its base are not: a recipe of another name gives the same vectors.
    """
    sources = teacher.manifest["made_by"].get("sources")  # fingerprints of bases
    names = {"space", "base"} if sources else {"space"}
    files, contracts = {}, {}
    for name, entry in teacher.manifest["files"].items():
        if PurePosixPath(name).name == CONTRACT_FILE:  # of the teacher, or an ensemble's member
            contract = json.loads((teacher.path / name).read_text(encoding="utf-8"))
            contracts[name] = {field: contract[field] for field in contract if field not in names}
        elif name != METRICS_FILE:  # holds times
            files[name] = entry["sha256"]
    content = json.dumps([VECTORS_VERSION, files, contracts, sources], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def recorded_identity(artifact: Artifact) -> str | None:
    """The identity of the teacher whose vectors an artifact holds, by its manifest alone.

    None for one without an index: of an API, of a miner, or of an earlier version.
    """
    summary = artifact.manifest["made_by"].get("summary")
    identity = summary.get("teacher") if isinstance(summary, Mapping) else None
    return identity if isinstance(identity, str) else None


@dataclass(frozen=True)
class Found:
    """Where the vectors of n texts are.

    Attributes:
        folders: of each text: a number in `KnownVectors`, or NOWHERE; int32, (n,).
        rows: of each text in its folder, int64, (n,).
    """

    folders: np.ndarray
    rows: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """Texts without a vector, by their place among the n."""
        return np.flatnonzero(self.folders == NOWHERE)


class KnownVectors:
    """The vectors of one teacher in the finished artifacts of a root.

    Args:
        contract: the teacher's.
    """

    def __init__(self, artifacts: list[Artifact], contract: BaseContract):
        self.contract = contract
        self._folders = [
            folder for artifact in artifacts for folder in _open_folders(artifact, contract.dims[0])
        ]

    @classmethod
    def open(cls, store: Store, teacher: Artifact, identity: str) -> "KnownVectors":
        """Opens the artifacts of the teacher with this identity, newest first.

        One that is not whole is left out, which is logged: its texts are encoded again.
        """
        artifacts = []
        for stage in STAGES:
            try:
                listed = store.list_artifacts(stage)
            except UserError as error:  # a broken manifest
                log.warning("no vectors of %s/%s are reused: %s", store.root, stage, error)
                continue
            for artifact in listed:
                if recorded_identity(artifact) == identity:
                    artifacts.append(artifact)
                elif stage == SHARED_STAGE:
                    log.info(
                        "%s is not used: its teacher is %s, and this one %s",
                        *(artifact.ref, recorded_identity(artifact), identity),
                    )
        return cls(artifacts, BaseContract.read(teacher.path))

    def find(self, digests: np.ndarray) -> Found:
        """Looks texts up by their digests; what is found is verified to be as it was written."""
        folders = np.full(len(digests), NOWHERE, dtype=np.int32)
        rows = np.zeros(len(digests), dtype=np.int64)
        for number, folder in enumerate(self._folders):
            missing = np.flatnonzero(folders == NOWHERE)
            if not len(missing):
                break
            rows_here = folder.find(digests[missing])
            here = rows_here >= 0
            folders[missing[here]], rows[missing[here]] = number, rows_here[here]
        return Found(folders, rows)

    def read(self, found: Found) -> np.ndarray:
        """The vectors of the n texts, float16 (n, dims); zeros where there is none.

        Raises:
            UserError: naming an artifact with a vector that no encoder gives.
        """
        vectors_nd = np.zeros((len(found.rows), self.contract.dims[0]), dtype=np.float16)
        for number in np.unique(found.folders[found.folders != NOWHERE]):
            places = np.flatnonzero(found.folders == number)
            folder = self._folders[number]
            vectors_nd[places] = folder.stored[found.rows[places]]
            try:
                require_usable(vectors_nd[places], normalised=self.contract.normalise)
            except UnusableVectorError as error:
                raise UserError(
                    f"{folder.artifact.ref}/{folder.name}, a text that was found there",
                    error.problem,
                    "Delete that artifact's folder, and run again",
                ) from error
        return vectors_nd


class _KnownFolder:
    """A folder of an artifact. Its files are compared with their SHA-256 at their first use."""

    def __init__(self, artifact: Artifact, name: str, dims: int):
        self.artifact, self.name = artifact, name
        folder = artifact.path / name
        for file in (SORTED_DIGESTS_FILE, SORTED_ROWS_FILE, ORDER_FILE, POSITIONS_FILE):
            self._verify(folder / file)
        self._verify(shard_path(folder, 0))
        self._verified = {0}  # numbers of shards
        self.stored = StoredVectors(folder)
        self.index = DigestIndex(folder)
        self._usable = True
        rows = self.index.rows
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.stored):
            raise altered_error(folder, SORTED_ROWS_FILE)
        if self.stored.dims != dims:
            raise UserError(
                f"{artifact.ref}/{name}",
                f"holds vectors of {self.stored.dims} dims, and its teacher gives {dims}",
                "Delete that artifact's folder",
            )

    def find(self, digests: np.ndarray) -> np.ndarray:
        """The row of each text, -1 where it is not here, or its shard was altered."""
        rows = self.index.find(digests) if self._usable else np.full(len(digests), -1)
        shards = self.stored.positions[rows[rows >= 0]] // self.stored.shard_size
        try:
            for shard in {*np.unique(shards).tolist()} - self._verified:
                self._verify(self.stored.files[shard])
                self._verified.add(shard)
        except UserError as error:
            log.warning("%s is not reused: %s", self.artifact.ref, error)
            self._usable = False
            return np.full(len(digests), -1)
        return rows

    def _verify(self, path: Path) -> None:
        file = path.relative_to(self.artifact.path).as_posix()
        entry: dict[str, Any] = self.artifact.manifest["files"].get(file, {})
        if not path.is_file() or sha256(path) != entry.get("sha256"):
            raise altered_error(self.artifact.path, file)


def _open_folders(artifact: Artifact, dims: int) -> list[_KnownFolder]:
    """The folders of an artifact that hold vectors; none where one of them is broken."""
    try:
        whole = Store(artifact.root).open(artifact.stage, artifact.name, artifact.key)
        names = [file.split("/")[0] for file in whole.manifest["files"] if "/" in file]
        return [_KnownFolder(whole, name, dims) for name in dict.fromkeys(names)]
    except UserError as error:
        log.warning("%s is not reused: %s", artifact.ref, error)
        return []
