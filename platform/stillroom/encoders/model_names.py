"""A model's name → a folder on this machine. No torch until a GGUF must be converted.

Names: a path; a hub id; or `package:MODULE/relative/path` for weights that an installed Python
package carries, as a folder of Safetensors, a `.gguf` file, or a `.zip.001` whose further parts
lie in this and sibling packages (`…-001`, `…-002`, …).
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from stillroom.errors import UserError
from stillroom.storage.artifacts import Artifact, Store, cache_folder

PACKAGE = "package:"

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)

WHOLE = 64 << 20  # bigger files are fingerprinted by samples


def locate(name: str, *, code: bool = False) -> Path:
    """The folder with a model's config, tokenizer and Safetensors.

    A package's GGUF or zip is converted once, into the cache (STILLROOM_CACHE).

    Args:
        code: of a hub's model, brings the Python that lies beside it too.

    Raises:
        UserError: when it is not there.
    """
    if not name.startswith(PACKAGE):
        return _folder(name, [*OF_A_MODEL, "*.py"] if code else OF_A_MODEL)
    found = _in_package(name)
    if found.suffix == ".gguf":
        return _cached(name, lambda target: _from_gguf(found, target))
    if found.name.endswith(".zip.001"):
        return _cached(name, lambda target: _from_zip(list(_zip_parts(name)), target))
    return found


@dataclass(frozen=True)
class Named(os.PathLike[str]):
    """A model's name as its folder, on whatever machine it is asked for."""

    name: str

    def __fspath__(self) -> str:
        return str(locate(self.name))


def model_of(name: str, store: Store) -> Artifact | Named:
    """The model of a name, which may be sent to another machine."""
    if name.split("/")[0] in ("teacher", "student") and not Path(name).exists():
        return store.find(name)
    return Named(name)


def of_artifact(name: str, store: Store) -> str:
    """`teacher/NAME` or `student/NAME-KEY` → the artifact's folder; any other name as it is."""
    found = model_of(name, store)
    return found.name if isinstance(found, Named) else str(found.path)


def config_of(name: str) -> dict[str, Any] | None:
    """A model's config.json, alone where it would come from the hub; None of an adapter, which has
    none."""
    folder = locate(name) if name.startswith(PACKAGE) else _folder(name, ["config.json"])
    file = folder / "config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def adapter_base(folder: Path) -> str | None:
    """The name of the model that a PEFT adapter's folder belongs to; None of another folder.

    Raises:
        UserError: when the adapter names none, or its weights are pickled.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as fault:
        raise UserError(str(path), f"is no JSON: {fault}", "Restore it") from fault
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


def fingerprint(name: str) -> str:
    """A short id of the weights that a name stands for; it changes when they do. An adapter's
    holds that of its base."""
    own = _fingerprint(name)
    base = None if name.startswith(PACKAGE) else adapter_base(_folder(name))
    return own if base is None else f"{own}+{fingerprint(base)}"


def _fingerprint(name: str) -> str:
    if name.startswith(PACKAGE):
        distribution, version = _distribution(name)
        _in_package(name)
        return f"{distribution}-{version}"
    folder = _folder(name)
    if not Path(name).exists():
        return folder.name  # a hub snapshot's folder is its revision
    sums = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        if file.name == "manifest.json":
            continue
        size = file.stat().st_size
        sums.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with file.open("rb") as opened:
            # Of large files a MiB in every 64: reading 14 GB would take longer than planning.
            for start in range(0, size, 1 << 20 if size <= WHOLE else WHOLE):
                opened.seek(start)
                sums.update(opened.read(1 << 20))
    return sums.hexdigest()[:16]


OF_A_MODEL = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json")


def _folder(name: str, files: Sequence[str] = OF_A_MODEL) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(name, "is a file, not a model's folder", "Name the folder that holds it")
    if not HUB_ID.fullmatch(name):
        raise UserError(name, "there is no such folder", "Correct the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as fault:
        raise UserError(
            name,
            "is neither a folder here nor a model that the hub gives",
            "Correct the name, download it beforehand, or unset HF_HUB_OFFLINE",
        ) from fault


def _module_and_path(name: str) -> tuple[str, str]:
    module, _, path = name.removeprefix(PACKAGE).partition("/")
    return module, path


def _distribution(name: str) -> tuple[str, str]:
    """(distribution, version) of a package reference; the module's name may be either's."""
    module, _ = _module_and_path(name)
    known = importlib.metadata.packages_distributions().get(module, [module])
    try:
        return known[0], importlib.metadata.version(known[0])
    except importlib.metadata.PackageNotFoundError as fault:
        distribution = module.replace("_", "-")
        raise UserError(
            name, f"the package {module} is not installed", f"Run: pip install {distribution}"
        ) from fault


def _in_package(name: str) -> Path:
    """The file or folder itself, found without importing the package."""
    module, path = _module_and_path(name)
    distribution, _ = _distribution(name)
    found: Path | None = None
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.origin is not None:
        found = Path(spec.origin).parent / path
    else:  # not importable: its files are listed all the same
        for file in importlib.metadata.files(distribution) or []:
            if file.as_posix().partition("/")[2] == path:
                found = Path(str(file.locate()))
    if found is None or not found.exists():
        raise UserError(
            name, f"the package {distribution} holds no {path}", "Correct the path after the module"
        )
    return found


def _zip_parts(name: str) -> Iterator[Path]:
    """The parts .001, .002, … each from the package of its number."""
    number = 1
    while True:
        digits = f"{number:03d}"
        part = name.replace("-001/", f"-{digits}/").removesuffix("001") + digits
        try:
            yield _in_package(part)
        except UserError:
            if number == 1:
                raise
            return
        number += 1


def _cached(name: str, make: Callable[[Path], Path]) -> Path:
    """A folder in the cache, made once; a killed conversion leaves nothing there."""
    identity = f"{name} {fingerprint(name)}"
    target = cache_folder() / "models" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
            try:
                os.replace(make(partial), target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _from_gguf(file: Path, target: Path) -> Path:
    """Dequantizes a GGUF model, and saves it as Safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # It is quantised no longer, and save_pretrained refuses what says it is.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    # Four bits a weight hold nothing that sixteen would lose.
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)
    return target


def _from_zip(parts: list[Path], target: Path) -> Path:
    """Joins a zip's parts and unpacks it; the folder inside that holds config.json."""
    joined = target / "joined.zip"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, out, 1 << 20)
    content = target / "content"
    with zipfile.ZipFile(joined) as archive:
        for member in archive.namelist():
            if not (content / member).resolve().is_relative_to(content.resolve()):
                raise UserError(str(parts[0]), f"holds {member!r}, outside its folder", "Delete it")
        archive.extractall(content)
    configs = sorted(content.rglob("config.json"), key=lambda path: len(path.parts))
    if not configs:
        raise UserError(str(parts[0]), "holds no config.json", "Name a zip with a model's folder")
    return configs[0].parent
