"""The models that a report measures, and how each is loaded."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.config.recipe import Report as Section
from stillroom.config.student import Student
from stillroom.config.validation import validate
from stillroom.encoders.contract import CONTRACT_FILE, Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.sentence_transformers import MODULES_FILE
from stillroom.encoders.interface import Embedder
from stillroom.encoders.model_names import locate_model
from stillroom.stages.api_teacher import is_api
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.student import untrained_student
from stillroom.stages.student_start import StudentStart, given_layers
from stillroom.storage.artifacts import Artifact


@dataclass(frozen=True)
class ModelSource:
    """A model with weights. Pickled to a Ray task.

    Attributes:
        role: in the report: teacher, student, teacher_base, student_base, or base: what the
            student was made from, as it was published.
    """

    role: str
    load: Callable[[], Embedder]

    @property
    def measured_elsewhere(self) -> bool:
        """Whether it is measured on the guards too: all but the teacher's base."""
        return self.role != "teacher_base"


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
        made_by = student.manifest["made_by"]["section"]
        if made_by.get("size") is None:  # else its weights are not the base's
            untouched = functools.partial(_untouched_base, made_by, student_trusted)
            models["untouched base"] = ModelSource("base", untouched)
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


def _untouched_base(made_by: Mapping[str, Any], trust_remote_code: bool) -> Encoder:
    """What the student was made from, with its own contract; a plain model gets the student's
    pooling."""
    folder = locate_model(made_by["base"], include_code=trust_remote_code)
    published = any((folder / name).exists() for name in (CONTRACT_FILE, MODULES_FILE))
    return create_encoder(
        made_by["base"],
        space="untouched-base",
        options=ContractOptions(
            pooling=None if published else made_by.get("pooling"),
            precision=made_by.get("precision", "auto"),
        ),
        trust_remote_code=trust_remote_code,
    )


def _student_before_training(student: Artifact, corpus: Artifact) -> Encoder:
    """The student at step 0: its base's weights, the kept layers, and the fitted projection."""
    section = student_section(student)
    start = StudentStart.read(student.path) or StudentStart(given_layers(section))
    trained = Contract.read(student.path)
    shares_space = start.weight is not None and section.space == "teacher"
    encoder = untrained_student(
        section,
        CorpusData.open(corpus),
        start,
        seed=student.manifest["made_by"]["section"]["seed"],
        space=trained.space if shares_space else f"{student.path.name}-base",
        projection_dims=None if start.weight is None else len(start.weight),
    )
    start.apply(encoder)
    if start.weight is not None:
        changes = {"dims": trained.dims, **trained.comparison._asdict()}
        encoder.contract = encoder.contract.model_copy(update=changes)
    return encoder


def student_section(student: Artifact) -> Student:
    """The recipe's section that a student was made by, with its last phase, and the one that this
    rehearses."""
    made_by = student.manifest["made_by"]["section"]
    fields = {name: made_by[name] for name in Student.model_fields if name in made_by}
    phases = [made_by[name] for name in ("rehearsed", "phase") if name in made_by]
    return validate(Student, {**fields, "phases": phases}, str(student.path))
