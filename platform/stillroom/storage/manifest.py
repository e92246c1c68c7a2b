"""`manifest.json`, which describes an artifact: its origin, its date, and every file's SHA-256."""

import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import UserError
from stillroom.storage.object_store import sha256

MANIFEST = "manifest.json"


def build_manifest(folder: Path, made_by: dict[str, Any], *, remote: bool) -> dict[str, Any]:
    """The manifest of all files in a folder.

    Args:
        remote: the artifact goes to object storage.
    """
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    return {
        "made_by": made_by,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "files": files,
        # In object storage every writer has a separate folder, and the manifest names the valid
        # one: two machines that publish the same key can never mix files.
        **({"data": uuid.uuid4().hex} if remote else {}),
    }


def parse_manifest(content: bytes, path: str, *, remote: bool) -> dict[str, Any]:
    """A manifest whose paths cannot lead outside its folder.

    Raises:
        UserError: at `path`, when it is not a manifest.
    """
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
        if remote and not re.fullmatch("[0-9a-f]{32}", manifest["data"]):
            raise ValueError("data")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            path, "is not a valid manifest", "Delete the folder and run the recipe again"
        ) from error
    return dict(manifest)


def verify(path: Path, manifest: dict[str, Any]) -> None:
    """Compares every file in a folder with its SHA-256 in the manifest.

    Raises:
        UserError: naming the first that differs or is missing.
    """
    for file, entry in manifest["files"].items():
        if not (path / file).is_file() or sha256(path / file) != entry["sha256"]:
            raise altered_error(path, file)


def altered_error(path: Path, file: str) -> UserError:
    """For a file in `path` that differs from its manifest."""
    return UserError(
        str(path / file),
        "differs from its artifact's manifest: missing, altered or cut short",
        "Delete the artifact's folder and run the recipe again",
    )
