"""TODO docstring: serving/routing/catalogue.py."""

from dataclasses import dataclass

from stillroom.release.reader import Release
from stillroom.serving.routing.policies import Policy


@dataclass(frozen=True)
class Model:
    """A name that clients may ask for, and who answers to it."""

    id: str
    release: Release
    policy: Policy
