"""Reads tensors and arrays from untrusted folders, and never reads outside of them.

Nothing is ever unpickled, since a pickle can run any code. Errors name the file.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from stillroom.errors import UserError, one_line

SAVE_AS_SAFETENSORS = (
    "Save the weights as Safetensors: pickled ones (.bin, .pt) can run code and are never loaded"
)


def read_tensors(path: Path) -> dict[str, Any]:
    """Name → torch tensor, from a Safetensors file.

    Raises:
        UserError: when it is missing, or is not Safetensors (pickled weights, for example).
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(str(path), "does not exist", SAVE_AS_SAFETENSORS)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise not_safetensors_error(path, str(error)) from error


def not_safetensors_error(path: Path, reason: str) -> UserError:
    """The error for weights in another format than Safetensors."""
    return UserError(
        str(path), f"is not a Safetensors file: {one_line(reason, 200)}", SAVE_AS_SAFETENSORS
    )


def read_array(path: Path, *, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The numbers of a `.npy` file.

    Raises:
        UserError: when it is missing, cut short, or holds pickled objects.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
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
