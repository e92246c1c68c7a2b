"""The folder or URI that holds artifacts when neither a recipe nor an option names one."""

import os

ROOT_VARIABLE = "STILLROOM_ROOT"
ROOT_FOLDER = "runs"  # under the working directory


def default_root() -> str:
    """The value of `STILLROOM_ROOT`; `runs` where it is not set."""
    return os.environ.get(ROOT_VARIABLE, ROOT_FOLDER)
