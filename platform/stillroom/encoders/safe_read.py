"""Reads tensors and arrays from untrusted folders, and never reads outside of them.

Nothing is ever unpickled, since a pickle can run any code. Errors name the file.
"""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from stillroom.encoders.usable_vectors import broken_weight_error
from stillroom.errors import UserError, one_line

SAVE_AS_SAFETENSORS = (
    "Save the weights as Safetensors: pickled ones (.bin, .pt) can run code and are never loaded"
)

# What the library says of a file that ends too early; a pickle's header is too large.
CUT_SHORT = ("not fully covered", "invalid header length", "header too small")

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
NAMED_KINDS = (".json", ".safetensors", ".txt", ".model")  # of a model's files
KINDS_WITH_CONTENT = (".json", ".safetensors", ".model")


def check_files(folder: Path) -> None:
    """Checks that a model's files, and those of its modules, are there as files.

    Raises:
        UserError: naming a link that leads nowhere, a pointer of Git LFS or an empty file. Some
            loaders would take such a file for a missing one.
    """
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix not in NAMED_KINDS:
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(
                str(path),
                f"is a link to {path.readlink()}, which does not exist",
                "Restore that file, or download the model again",
            )
        if not path.is_file():
            continue
        if path.stat().st_size == 0 and path.suffix in KINDS_WITH_CONTENT:
            raise UserError(str(path), "is empty", "Restore it, or download the model again")
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    str(path),
                    "is a pointer of Git LFS in place of the file",
                    f"Run git lfs pull in {path.parent}, or download the model again",
                )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: when it is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(str(path), "does not exist", "Restore the model's files") from error
    except ValueError as error:
        raise UserError(
            str(path), f"is not JSON: {one_line(error, 200)}", "Restore the model's files"
        ) from error
    if not isinstance(content, dict):
        raise UserError(str(path), "is not a JSON object", "Restore the model's files")
    return content


def read_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → type and shape of each tensor in a Safetensors file; reads its header only.

    Raises:
        UserError: when it is missing, cut short, or not Safetensors (pickled weights, for example).
    """
    if not path.exists():
        raise UserError(str(path), "does not exist", SAVE_AS_SAFETENSORS)
    try:
        with safe_open(path, "np") as file:
            slices = ((name, file.get_slice(name)) for name in list(file.keys()))
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices}
    except (OSError, SafetensorError) as error:
        raise not_safetensors_error(path, str(error)) from error


def read_tensors(path: Path) -> dict[str, Any]:
    """Name → torch tensor, from a Safetensors file.

    Raises:
        UserError: when it is missing, is not Safetensors (pickled weights, for example), or holds
            numbers that are not finite.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(str(path), "does not exist", SAVE_AS_SAFETENSORS)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise not_safetensors_error(path, str(error)) from error
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise broken_weight_error(f"{path}: {name}")
    return tensors


def is_finite(tensor: Any) -> bool:
    """Whether all numbers of a torch tensor are finite."""
    # A sum is fifty times as fast as a look at each number, and can only overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def not_safetensors_error(path: Path, reason: str) -> UserError:
    """The error for weights that are cut short, or in another format than Safetensors."""
    if any(sign in reason for sign in CUT_SHORT):
        return UserError(
            str(path), "is cut short, or was changed", "Copy or download that file again"
        )
    return UserError(
        str(path), f"is not a Safetensors file: {one_line(reason, 200)}", SAVE_AS_SAFETENSORS
    )


def map_array(path: Path) -> np.ndarray:
    """The numbers of a `.npy` file, mapped: read when they are used, and shared by processes.

    Holds no file descriptor, unlike NumPy's memmap: there may be thousands of files.

    Raises:
        UserError: when it is missing, cut short, or holds pickled objects.
    """
    try:
        with pa.memory_map(str(path)) as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"its format is {version}")
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject or by_columns:
                raise ValueError("it holds objects, or is ordered by columns")
            start, size = file.tell(), math.prod(shape) * dtype.itemsize
            content = file.read_buffer(size)
            if content.size != size or file.size() != start + size:
                raise ValueError("it has another size than its header says")
            array = np.frombuffer(content, dtype).reshape(shape)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            str(path),
            f"is not an array of numbers: {one_line(error, 200)}",
            "Delete its artifact's folder and run the recipe again; objects are never unpickled",
        ) from error
    return array


def path_inside(folder: Path, path: str, named_by: Path) -> Path:
    """A path that a file names, which must be inside the folder.

    Args:
        named_by: that file, for the error.

    Raises:
        UserError: when the path leads out of the folder.
    """
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError(
            str(named_by), f"names {path!r}, outside its folder", "Do not use that folder"
        )
    return folder / path
