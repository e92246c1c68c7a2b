"""The folder or URI that holds artifacts when neither a recipe nor an option names one."""

import os

ROOT_VARIABLE = "STILLROOM_ROOT"
ROOT_FOLDER = "runs"  # under the working directory


def default_root() -> str:
    """The value of `STILLROOM_ROOT`; `runs` where it is not set."""
    return os.environ.get(ROOT_VARIABLE, ROOT_FOLDER)


def is_local(root: str) -> bool:
    """Whether a root is a folder of this machine, or a file system that is mounted here."""
    return "://" not in root or root.startswith("file://")
