"""Converts models that transformers does not open in place: GGUF files and zips of a folder."""

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import filelock

from stillroom.errors import UserError
from stillroom.storage.artifacts import cache_folder


def make_once(identity: str, make: Callable[[Path], Path]) -> Path:
    """A model's folder in the cache, made at the first call; a killed call leaves nothing behind.

    Args:
        identity: everything that the folder's content depends on.
        make: fills an empty folder, and returns it or the folder inside that is the model.
    """
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


def convert_gguf(file: Path, folder: Path) -> Path:
    """Dequantises a GGUF model, and saves it as Safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stillroom.encoders.files.save_transformer import save_transformer

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # It is no longer quantised, and save_pretrained refuses a model that says it is.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    # Weights of four bits fit into sixteen without loss.
    save_transformer(model.to(torch.bfloat16), folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def unpack_zip(parts: list[Path], folder: Path) -> Path:
    """Joins a zip's parts and unpacks it; returns the outermost folder that holds config.json.

    Raises:
        UserError: when a member is outside the folder, or there is no config.json.
    """
    joined = folder / "joined.zip"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, out, 1 << 20)
    content = folder / "content"
    with zipfile.ZipFile(joined) as archive:
        for member in archive.namelist():
            if not (content / member).resolve().is_relative_to(content.resolve()):
                raise UserError(str(parts[0]), f"holds {member!r}, outside its folder", "Delete it")
        archive.extractall(content)
    configs = sorted(content.rglob("config.json"), key=lambda path: len(path.parts))
    if not configs:
        raise UserError(str(parts[0]), "holds no config.json", "Name a zip with a model's folder")
    return configs[0].parent
