"""The result of one preflight check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        what: the subject of the check.
        fix: what to do; empty where the finding is ok.
    """

    what: str
    ok: bool
    detail: str
    fix: str = ""
