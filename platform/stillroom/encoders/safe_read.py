"""What is read of a folder that may come from anywhere: tensors, numbers, and only inside it.

Nothing is ever unpickled, for a pickle runs whatever it likes. The errors name the file.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from stillroom.errors import UserError

SAVE = "Save the weights as Safetensors: pickled ones (.bin, .pt) can run code and are never loaded"


def tensors(path: Path) -> dict[str, Any]:
    """Name → torch tensor, of a Safetensors file.

    Raises:
        UserError: when it is missing or is none, as pickled weights are not.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise UserError(str(path), "does not exist", SAVE)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as fault:
        raise no_safetensors(path, str(fault)) from fault


def no_safetensors(path: Path, fault: str) -> UserError:
    return UserError(
        str(path),
        f"is no Safetensors file: {' '.join(fault.split())[:200]}",
        SAVE,
    )


def array(path: Path, *, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The numbers of a `.npy` file.

    Raises:
        UserError: when it is missing, cut short, or holds pickled objects.
    """
    try:
        found: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        raise UserError(
            str(path),
            f"is no array of numbers: {' '.join(str(fault).split())[:200]}",
            "Delete its artifact's folder and run the recipe again; objects are never unpickled",
        ) from fault
    return found


def inside(folder: Path, path: str, where: Path) -> Path:
    """What a file names within its folder.

    Args:
        where: that file.

    Raises:
        UserError: when the path leads out.
    """
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError(str(where), f"names {path!r}, outside its folder", "Do not use that folder")
    return folder / path
