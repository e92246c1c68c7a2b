"""The models that a report measures, and how each is loaded."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillroom.config.recipe import Report as Section
from stillroom.config.student import Student
from stillroom.config.validation import validate
from stillroom.encoders.contract import Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.interface import Embedder
from stillroom.stages.api_teacher import is_api
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.student import untrained_student
from stillroom.storage.artifacts import Artifact


@dataclass(frozen=True)
class ModelSource:
    """A model with weights. Pickled to a Ray task.

    Attributes:
        role: in the report: teacher, student, teacher_base or student_base.
    """

    role: str
    load: Callable[[], Embedder]


def models_to_measure(
    section: Section,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    trusted: Sequence[str],
) -> dict[str, ModelSource]:
    """Name in the report → model. A teacher behind an API is not among them."""
    teacher_trusted, student_trusted = "teacher" in trusted, "student" in trusted
    models = {}
    if not is_api(teacher.path):
        load = functools.partial(_load_artifact, teacher, teacher_trusted)
        models["teacher"] = ModelSource("teacher", load)
    load = functools.partial(_load_artifact, student, student_trusted)
    models["student"] = ModelSource("student", load)
    if section.base_models:
        if teacher.manifest["made_by"]["section"]["phase"] is not None:
            untrained = functools.partial(_teacher_before_training, teacher, teacher_trusted)
            models["teacher before training"] = ModelSource("teacher_base", untrained)
        untrained = functools.partial(_student_before_training, student, corpus)
        models["student before training"] = ModelSource("student_base", untrained)
    return models


def _load_artifact(model: Artifact, trust_remote_code: bool) -> Embedder:
    return load_encoder(model.path, trust_remote_code=trust_remote_code)


def _teacher_before_training(teacher: Artifact, trust_remote_code: bool) -> Encoder:
    """The base that the teacher was trained from, without adapter or projection."""
    contract = Contract.read(teacher.path)
    return create_encoder(
        contract.base,
        space=f"{contract.space}-base",
        options=ContractOptions.from_fields(
            contract, layer_norm=teacher.manifest["made_by"]["section"].get("layer_norm", False)
        ),
        trust_remote_code=trust_remote_code,
    )


def _student_before_training(student: Artifact, corpus: Artifact) -> Encoder:
    """The student as created from its base, without the initial projection."""
    made_by = student.manifest["made_by"]["section"]
    fields = {name: made_by[name] for name in Student.model_fields if name in made_by}
    section = validate(Student, {**fields, "phases": [made_by["phase"]]}, str(student.path))
    return untrained_student(
        section,
        CorpusData.read(corpus),
        seed=made_by["seed"],
        space=f"{student.path.name}-base",
    )
