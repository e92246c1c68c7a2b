"""TODO docstring: preflight/findings.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A `fix` says what to do where it is not `ok`."""

    what: str
    ok: bool
    detail: str
    fix: str = ""
