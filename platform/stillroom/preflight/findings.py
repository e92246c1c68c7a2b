"""The result of one preflight check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        what: was checked.
        fix: what to do; empty where the finding is ok.
    """

    what: str
    ok: bool
    detail: str
    fix: str = ""
