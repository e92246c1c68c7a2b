"""A model's name → a folder on this machine. Needs torch only to convert or create a model.

A name is one of
- a path;
- a hub id, such as `sentence-transformers/all-MiniLM-L6-v2`;
- `package:MODULE/relative/path` for weights inside an installed Python package: a folder of
  Safetensors, a `.gguf` file, or a `.zip.001` whose further parts are in this and sibling packages
  (`…-001`, `…-002`, …);
- `random:FAMILY`, a tiny model with random weights; see `files.random_model`.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.encoders.files.convert import convert_gguf, make_once, unpack_zip
from stillroom.encoders.files.packages import (
    PACKAGE,
    distribution_and_version,
    package_path,
    zip_parts,
)
from stillroom.encoders.files.random_model import (
    RANDOM,
    VERSION,
    build_random_model,
    parse_random_name,
)
from stillroom.encoders.safe_read import check_files
from stillroom.errors import UserError
from stillroom.storage.artifacts import Artifact, Store

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)

# What is downloaded from the hub.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json")

FULLY_HASHED_BYTES = 64 << 20  # bigger files are fingerprinted by samples


def locate_model(name: str, *, include_code: bool = False) -> Path:
    """The folder with a model's config, tokenizer and Safetensors.

    A package's GGUF or zip is converted once, and a random model made once, into the cache
    (STILLROOM_CACHE).

    Args:
        include_code: also downloads the Python files of a hub's model.

    Raises:
        UserError: when there is no such model.
    """
    if name.startswith(RANDOM):
        return make_once(_identity(name), lambda folder: build_random_model(name, folder))
    if not name.startswith(PACKAGE):
        return _folder(name, [*MODEL_FILES, "*.py"] if include_code else MODEL_FILES)
    path = package_path(name)
    if path.suffix == ".gguf":
        return make_once(_identity(name), lambda folder: convert_gguf(path, folder))
    if path.name.endswith(".zip.001"):
        return make_once(_identity(name), lambda folder: unpack_zip(list(zip_parts(name)), folder))
    return path


@dataclass(frozen=True)
class NamedModel(os.PathLike[str]):
    """A model that each machine locates by its name, when it opens the path."""

    name: str

    def __fspath__(self) -> str:
        return str(locate_model(self.name))


def find_model(name: str, store: Store) -> Artifact | NamedModel:
    """The model of a name, as a path that may be sent to another machine."""
    if name.split("/")[0] in ("teacher", "student") and not Path(name).exists():
        return store.find(name)
    return NamedModel(name)


def resolve_artifact_name(name: str, store: Store) -> str:
    """The artifact's folder for `teacher/NAME` or `student/NAME-KEY`; other names unchanged."""
    model = find_model(name, store)
    return model.name if isinstance(model, NamedModel) else str(model.path)


def read_config(name: str) -> dict[str, Any] | None:
    """A model's config.json, the only file to be downloaded from the hub; None for an adapter."""
    on_this_machine = name.startswith((PACKAGE, RANDOM))
    folder = locate_model(name) if on_this_machine else _folder(name, ["config.json"])
    file = folder / "config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def adapter_base(folder: Path) -> str | None:
    """The name of a PEFT adapter's base model; None for a folder without an adapter.

    Raises:
        UserError: when the adapter names no base, or its weights are pickled.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(str(path), f"is not JSON: {error}", "Restore it") from error
    if not base:
        raise UserError(
            str(path),
            "does not say which model it adapts",
            "Write it as base_model_name_or_path: a folder or a hub id",
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            str(folder),
            f"holds an adapter without {ADAPTER_WEIGHTS}",
            "Save it as Safetensors: pickled weights (.bin) can run code and are never loaded",
        )
    return str(base)


def model_fingerprint(name: str) -> str:
    """A short id of a model's weights, which changes when they do; an adapter's includes its
    base's.

    Raises:
        UserError: when there is no such model.
    """
    if name.startswith(RANDOM):
        parse_random_name(name)
        return f"{name} {VERSION}"
    if name.startswith(PACKAGE):
        package_path(name)
        return "-".join(distribution_and_version(name))
    folder = _folder(name)
    # A hub snapshot's folder is named by its revision.
    fingerprint = _files_fingerprint(folder) if Path(name).exists() else folder.name
    base = adapter_base(folder)
    return fingerprint if base is None else f"{fingerprint}+{model_fingerprint(base)}"


def _identity(name: str) -> str:
    return f"{name} {model_fingerprint(name)}"


def _files_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name == "manifest.json":
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        # Of large files a MiB in every 64: reading 14 GB would take longer than planning.
        stride = 1 << 20 if size <= FULLY_HASHED_BYTES else FULLY_HASHED_BYTES
        with file.open("rb") as opened:
            for start in range(0, size, stride):
                opened.seek(start)
                digest.update(opened.read(1 << 20))
    return digest.hexdigest()[:16]


def _folder(name: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """A path's folder, or a hub id's after a download of those files."""
    path = Path(name).expanduser()
    if path.is_dir():
        check_files(path)
        return path
    if path.exists():
        raise UserError(name, "is a file, not a model's folder", "Name the folder that holds it")
    if not HUB_ID.fullmatch(name):
        raise UserError(name, "there is no such folder", "Correct the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            name,
            "is neither a folder here nor a model that the hub gives",
            "Correct the name, download it beforehand, or unset HF_HUB_OFFLINE",
        ) from error
    check_files(folder)
    return folder
