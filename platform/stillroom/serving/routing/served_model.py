"""A name that clients may request, and the policy that chooses its encoder."""

from dataclasses import dataclass

from stillroom.release.reader import Release
from stillroom.serving.routing.policies import Policy


@dataclass(frozen=True)
class ServedModel:
    """An entry of GET /v1/models.

    Attributes:
        id: NAME, NAME/teacher or NAME/student.
    """

    id: str
    release: Release
    policy: Policy
