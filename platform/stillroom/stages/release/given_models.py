"""The models that `stillroom release create` is given: found, and checked against the floors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.config.recipe import Release as Section
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Pooling
from stillroom.encoders.model_names import model_fingerprint
from stillroom.errors import UserError
from stillroom.release.open_model import locate_everywhere
from stillroom.reports.model_card import artifact_of
from stillroom.storage.artifacts import Artifact, Store

CREATE_VERSION = 1  # raised when the same models and sets would give another release

# Fields of the release section that only a pair of models can be measured by.
NEEDS_TEACHER = (
    "mean_retention", "every_set_retention", "retention_by_set", "asymmetric_retention", "speedup",
)  # fmt: skip


@dataclass(frozen=True)
class GivenModel:
    """A model that the user named.

    Attributes:
        name: as the user wrote it.
        ref: its name on every machine.
        source: as `load_encoder` takes it here.
        fingerprint: of its files.
        artifact: None for a model that no recipe made.
        pooling: of a plain model.
    """

    name: str
    ref: str
    source: str
    fingerprint: str
    artifact: Artifact | None
    pooling: Pooling | None = None

    @classmethod
    def find(cls, name: str, store: Store, pooling: Pooling | None = None) -> "GivenModel":
        """The model of a name. Raises UserError when there is none."""
        ref, source = locate_everywhere(name, store.root)
        return cls(name, ref, source, model_fingerprint(source), artifact_of(name, store), pooling)


def check_section(
    section: Section, given: Mapping[str, GivenModel], sets: Mapping[str, EvaluationSet]
) -> None:
    """Refuses floors that cannot be measured.

    Args:
        sets: empty without a gate.
    """
    floors = section.model_fields_set - {"exports", "playground"}
    for name in sorted(floors):
        if not sets:
            raise UserError(name, "is measured on evaluation sets", "Name them with --gate")
        if "student" not in given:
            raise UserError(name, "is a floor for a student, and there is none", "Add --student")
        if name in NEEDS_TEACHER and "teacher" not in given:
            raise UserError(name, "compares with a teacher, and there is none", "Add --teacher")
    if section.student_beats_base:
        problem = "needs the model before its training, which only a recipe knows"
        raise UserError("student_beats_base", problem, "Leave it out")
    for name in (*section.retention_by_set, *section.ndcg_by_set):
        if name not in sets:
            raise UserError(name, "is not one of the sets", f"The sets are {', '.join(sets)}")
    if section.exports and "student" not in given:
        raise UserError("exports", "are of a student, and there is none", "Add --student")


def creation_parts(
    section: Section, given: Mapping[str, GivenModel], sets_hash: str | None
) -> dict[str, Any]:
    """Everything that the release's key hashes, as the manifest keeps it."""
    models = {role: model.ref for role, model in given.items()}
    poolings = {role: model.pooling for role, model in given.items()}
    artifacts = {role: model.artifact for role, model in given.items()}
    return {
        "stage": "release",
        "version": CREATE_VERSION,
        "section": {
            **section.model_dump(mode="json"), "models": models, "pooling": poolings,
        },
        "inputs": {role: artifact.key for role, artifact in artifacts.items() if artifact},
        "sources": {
            **{role: model.fingerprint for role, model in given.items()},
            **({} if sets_hash is None else {"gate": sets_hash}),
        },
    }  # fmt: skip
