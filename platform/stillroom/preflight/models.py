"""Checks of the models that a recipe starts from. Reads files' names, sizes and headers only;
`trial` encodes with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.config.recipe import Recipe
from stillroom.config.student import Student
from stillroom.config.teacher import EncoderChoice, Teacher, TeacherMember
from stillroom.encoders.contract import Contract
from stillroom.encoders.model_names import (
    ADAPTER_WEIGHTS,
    TOKENIZER_FILES,
    adapter_base,
    locate_model,
)
from stillroom.encoders.remote_code import needs_remote_code, remote_code_error
from stillroom.errors import UserError

# Either of these files defines how to pool a model's states.
POOLING_FILES = ("contract.json", "modules.json")


@dataclass(frozen=True)
class BaseModel:
    """A model that training or embedding starts from.

    Attributes:
        field: of the recipe.
        name: as the recipe has it.
        pooling: that the recipe sets.
        trusted: whether Python code that comes with it may run.
        section: of the recipe, with its other settings; None: all are the model's own.
        trained: whether training changes its weights.
    """

    field: str
    name: str
    pooling: str | None
    trusted: bool
    section: Teacher | TeacherMember | Student | None = None
    trained: bool = True

    @property
    def encoder(self) -> EncoderChoice:
        """What runs the model, as the recipe says."""
        return "stillroom" if self.trained else getattr(self.section, "encoder", "auto")


def base_models(recipe: Recipe) -> Iterator[BaseModel]:
    """The teacher's base or members, and the student's base."""
    teacher, student = recipe.teacher, recipe.student
    if teacher.base is not None:
        yield BaseModel(
            "teacher.base",
            teacher.base,
            teacher.pooling,
            teacher.trust_remote_code,
            teacher,
            trained=bool(teacher.phases),
        )
    for number, member in enumerate(teacher.members or ()):
        field = f"teacher.members.{number}.base"
        code = teacher.trust_remote_code
        yield BaseModel(field, member.base, member.pooling, code, member, trained=False)
    yield BaseModel(
        "student.base", student.base, student.pooling, student.trust_remote_code, student
    )


def check_model(model: BaseModel, *, weights: bool = True) -> int:
    """Checks that a model has config, tokenizer, pooling and weights that can be loaded.

    Args:
        weights: whether it must have weights.

    Returns:
        Bytes of its weights; for an adapter, with those of its base.

    Raises:
        UserError: naming what is missing.
    """
    try:
        return _check_model(model, weights)
    except UserError as error:
        if error.where.startswith(model.field):
            raise
        where = f"{model.field}: {error.where}"
        raise UserError(where, error.problem, error.fix) from error


def _check_model(model: BaseModel, weights: bool) -> int:
    where = f"{model.field}: {model.name}"
    folder = locate_model(model.name, include_code=model.trusted)
    if (adapted := adapter_base(folder)) is not None:
        from stillroom.encoders.files.check_weights import check_lora  # loads torch

        size = (folder / ADAPTER_WEIGHTS).stat().st_size
        check_lora(folder, adapted)
        pooling = model.pooling
        if pooling is None and (folder / "modules.json").is_file():
            pooling = "its own"
        return size + check_model(BaseModel(model.field, adapted, pooling, model.trusted))
    if (folder / "contract.json").is_file():
        Contract.read(folder)  # refuses an ensemble and an API
    if needs_remote_code(folder) and not model.trusted:
        raise remote_code_error(folder)
    # What only sentence-transformers can read, `trial` opens.
    of_library = not model.trained and (folder / "modules.json").is_file()
    if not of_library:
        _check_files(model, where, folder)
    if weights:
        _check_weights(folder, model.trusted)
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _check_weights(folder: Path, trusted: bool) -> None:
    """Raises UserError for weights that our own forward cannot load, by their headers."""
    from stillroom.encoders.files.check_weights import check_weights  # loads torch
    from stillroom.encoders.files.library import library_reason
    from stillroom.encoders.files.sentence_transformers import transformer_folder

    if library_reason(folder) is not None:
        return
    transformer = transformer_folder(folder)
    if (transformer / "config.json").is_file():  # an adapter of ours has none
        check_weights(transformer, trust_remote_code=trusted)


def _check_files(model: BaseModel, where: str, folder: Path) -> None:
    """Raises UserError when config, tokenizer or pooling are missing."""
    if not (folder / "config.json").is_file() and not (folder / "contract.json").is_file():
        raise UserError(where, "has no config.json", "Name a folder that transformers can load")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            where,
            f"has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            "Save the model's tokenizer into its folder",
        )
    if model.pooling is None and not any((folder / name).is_file() for name in POOLING_FILES):
        raise UserError(
            where,
            "is a plain model, which does not say how its states become a vector",
            f"Set {model.field.partition('.')[0]}.pooling to mean, weighted_mean, last or cls",
        )
