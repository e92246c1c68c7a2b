"""A step: one artifact to make, and everything that its key hashes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stillroom.config.base import Section
from stillroom.stages.vectors.digests import VECTORS_VERSION
from stillroom.storage.artifacts import key_of

# Raise a stage's version when its code gives other results for the same inputs.
STAGE_VERSIONS = {
    "synthetic": 1,
    "corpus": 7,
    "teacher": 2,
    "vectors": VECTORS_VERSION,
    "negatives": 4,
    "student": 4,
    "report": 7,
    "release": 4,
}


@dataclass(frozen=True)
class Step:
    """One artifact to make.

    Attributes:
        stage: names the function that makes it; see `pipeline.run.STAGES`.
        name: of the artifact: the recipe's name, with a phase's number where there are several.
        args: the recipe's part of the inputs, as the function's keyword arguments.
        inputs: role → the step whose artifact is read; keyword arguments as well.
        sources: name → fingerprint of an external input.
    """

    stage: str
    name: str
    args: dict[str, Any]
    inputs: dict[str, Step] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def made_by(self) -> dict[str, Any]:
        """Everything that the key hashes, as JSON."""
        return {
            "stage": self.stage,
            "version": STAGE_VERSIONS[self.stage],
            "section": _as_json(self.args),
            "inputs": {role: step.key for role, step in self.inputs.items()},
            "sources": self.sources,
        }

    @cached_property
    def key(self) -> str:
        return key_of(self.made_by)

    @property
    def ref(self) -> str:
        """The artifact's name under the root, such as student/quickstart-1a2b3c4d."""
        return f"{self.stage}/{self.name}-{self.key}"


def by_stage(*steps: Step) -> dict[str, Step]:
    """The steps as inputs whose roles are their stages."""
    return {step.stage: step for step in steps}


def _as_json(args: dict[str, Any]) -> dict[str, Any]:
    """The fields of the recipe's section, and the other arguments."""
    plain = {
        name: value.model_dump(mode="json") if isinstance(value, Section) else value
        for name, value in args.items()
    }
    return {**plain.pop("section"), **plain}
