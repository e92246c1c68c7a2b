"""How teacher and student compare vectors, and whether the student's losses fit to that. Imports
torch, but loads no model."""

from stillroom.config.recipe import Recipe
from stillroom.config.teacher import Teacher
from stillroom.encoders.contract import Comparison
from stillroom.encoders.ensemble import require_unit_vectors
from stillroom.encoders.files.folder import read_comparison
from stillroom.encoders.model_names import locate_model, resolve_artifact_name
from stillroom.preflight.findings import Finding
from stillroom.stages.student import check_losses, student_comparison
from stillroom.storage.artifacts import Store


def check_similarity(recipe: Recipe, store: Store) -> Finding:
    """How both models' vectors are compared.

    Raises:
        UserError: for a similarity or a loss that does not fit to the teacher's vectors.
    """
    section = recipe.student
    teacher = _teacher_comparison(recipe.teacher, store)
    base = _base_comparison(section.base, store, section.trust_remote_code)
    student = student_comparison(section, teacher, base)
    for number, phase in enumerate(section.phases):
        check_losses(phase.losses, student, teacher, f"student.phases[{number}].losses")
    detail = f"teacher by {teacher.similarity}, student by {student.similarity}"
    return Finding("similarity", True, detail)


def _teacher_comparison(section: Teacher, store: Store) -> Comparison:
    if section.api is not None:
        return Comparison(section.api.similarity, section.api.similarity == "cosine")
    if section.base is not None:
        base = _base_comparison(section.base, store, section.trust_remote_code)
        return base.changed_to(section.similarity)
    for number, member in enumerate(section.members or ()):
        base = _base_comparison(member.base, store, section.trust_remote_code)
        require_unit_vectors(number, member.base, base.changed_to(member.similarity))
    return Comparison("cosine", True)


def _base_comparison(name: str, store: Store, include_code: bool) -> Comparison:
    folder = locate_model(resolve_artifact_name(name, store), include_code=include_code)
    return read_comparison(folder)
