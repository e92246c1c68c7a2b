"""A teacher's vectors for other teams: published to a folder or bucket, and imported from there.

What is shared is an artifact of the stage `shared-vectors`: the vectors, digests of their texts and
the teacher's contract. It holds no text. Its manifest has each file's SHA-256 and the identity of
the teacher, by which a run decides whether the vectors are its own teacher's.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import PurePosixPath

from stillroom.encoders.contract import CONTRACT_FILE
from stillroom.encoders.safe_read import map_array
from stillroom.encoders.vectors.stored import ORDER_FILE, POSITIONS_FILE
from stillroom.errors import UserError
from stillroom.stages.vectors.digests import SORTED_DIGESTS_FILE, SORTED_ROWS_FILE
from stillroom.stages.vectors.reuse import SHARED_STAGE, recorded_identity, teacher_identity
from stillroom.storage.artifacts import Artifact, Store, key_of
from stillroom.storage.manifest import verify

# Of a folder of vectors. The reasons why texts were skipped may quote them, and stay.
SHARED_FILES = (ORDER_FILE, POSITIONS_FILE, SORTED_DIGESTS_FILE, SORTED_ROWS_FILE, "shard-*.npy")


@dataclass(frozen=True)
class SharedVectors:
    """A published or imported artifact.

    Attributes:
        teacher: its identity; vectors of another one are never used.
        texts: that have a vector.
        copied: False where it was there already.
    """

    artifact: Artifact
    teacher: str
    texts: int
    copied: bool


def publish_vectors(artifact: Artifact, target: Store) -> SharedVectors:
    """Copies a finished `vectors` artifact to a root that others can read, without any text.

    Raises:
        UserError: when nobody could find its vectors by text, or a file was altered.
    """
    if recorded_identity(artifact) is None:
        raise UserError(
            artifact.ref,
            "has no index of its texts: it is of an API, of a miner, or of an earlier version",
            "Name the vectors of a teacher with weights, or run its recipe again",
        )
    return _copy(artifact, target)


def import_vectors(source: Store, target: Store) -> list[SharedVectors]:
    """Copies all vectors that were published to a root into another, where runs reuse them.

    Raises:
        UserError: when there are none, or a file differs from its checksum.
    """
    artifacts = source.list_artifacts(SHARED_STAGE)
    if not artifacts:
        raise UserError(
            source.root,
            f"holds no published vectors, which would be in {SHARED_STAGE}/",
            "Name the folder or URI that stillroom vectors publish wrote to",
        )
    for artifact in artifacts:
        if recorded_identity(artifact) is None:
            raise UserError(
                f"{source.root}/{artifact.ref}", "does not name its teacher", "Publish it again"
            )
    return [_copy(source.open(made.stage, made.name, made.key), target) for made in artifacts]


def known_teachers(store: Store) -> dict[str, str]:
    """Identity → reference of the teachers under a local root; of a remote one those whose
    vectors it has, since a teacher's weights would have to be fetched.
    """
    known = {recorded_identity(made): made.ref for made in store.list_artifacts("vectors")}
    for made in store.list_artifacts("teacher") if store.local else []:
        with contextlib.suppress(OSError, ValueError):  # a teacher that is not whole is none
            known[teacher_identity(made)] = made.ref
    return {identity: ref for identity, ref in known.items() if identity is not None}


def _is_shared(file: PurePosixPath) -> bool:
    if len(file.parts) == 1:
        return file.name == CONTRACT_FILE
    return any(file.match(pattern) for pattern in SHARED_FILES)


def _copy(artifact: Artifact, target: Store) -> SharedVectors:
    identity = recorded_identity(artifact)
    assert identity is not None
    entries = {
        file: entry
        for file, entry in artifact.manifest["files"].items()
        if _is_shared(PurePosixPath(file))
    }
    indexes = [artifact.path / file for file in entries if file.endswith(SORTED_ROWS_FILE)]
    texts = sum(len(map_array(index)) for index in indexes)
    # By content: it never has the key of a step, whose artifact has more files.
    key = key_of({file: entry["sha256"] for file, entry in entries.items()})
    with target.draft(SHARED_STAGE, artifact.name, key) as draft:
        copied = draft.artifact is None
        if copied:
            for file in entries:
                path = draft.path / file
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.path / file, path)
            verify(draft.path, {"files": entries})
            summary = {"teacher": identity, "texts": texts}
            draft.publish({"stage": SHARED_STAGE, "summary": summary})
        assert draft.artifact is not None
        return SharedVectors(draft.artifact, identity, texts, copied)
