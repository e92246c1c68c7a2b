"""The API key of an endpoint, from the environment."""

import os
from pathlib import Path

from stillroom.errors import UserError


def read_api_key(variable: str | None, field: str) -> str | None:
    """The key in an environment variable, or in the file that NAME_FILE names.

    Args:
        variable: name of the variable; None needs no key.
        field: the recipe's field that names it, for errors.

    Raises:
        UserError: when there is neither a variable nor a file.
    """
    if variable is None:
        return None
    if key := os.environ.get(variable):
        return key
    path = os.environ.get(f"{variable}_FILE")
    if not path:
        raise UserError(
            field,
            f"the environment has no {variable}",
            f"Set it (`export {variable}=…`), set {variable}_FILE to the file that holds it, or "
            "name another variable",
        )
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"{variable}_FILE", f"cannot read {path}: {reason}", "Correct the path"
        ) from error
