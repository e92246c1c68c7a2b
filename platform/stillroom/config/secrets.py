"""Secrets that do not belong in a recipe, which is copied into manifests and logs."""

import re
from collections.abc import Iterator
from typing import Any

# Names of environment variables whose values must not be shown.
SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(?:_|$)", re.I)

URL_WITH_PASSWORD = re.compile(r"\w://[^/\s@]*:[^/\s@]+@")


def secret_fields(content: Any, field: str = "") -> Iterator[str]:
    """Paths of the fields, at any depth, whose values hold a secret.

    A secret is a URL with a password (`SCHEME://USER:PASSWORD@…`), or a reference to an environment
    variable whose name contains key, token, password or similar.
    """
    if isinstance(content, str):
        variables = re.findall(r"\$\{oc\.env:\s*(\w+)", content)
        if URL_WITH_PASSWORD.search(content) or any(map(SECRET_NAME.search, variables)):
            yield field
    items = content.items() if isinstance(content, dict) else ()
    for key, value in enumerate(content) if isinstance(content, list) else items:
        yield from secret_fields(value, f"{field}.{key}".lstrip("."))
