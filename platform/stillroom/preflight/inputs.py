"""What teacher and student read of each role's texts. Loads tokenizers, but no weights."""

from collections.abc import Collection, Iterator

from stillroom.config.base import PromptedModel, Prompts
from stillroom.config.recipe import Recipe
from stillroom.encoders.files.inputs import folder_prompts, input_describer
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.model_names import locate_model, resolve_artifact_name
from stillroom.encoders.prompt_names import replace_prompts
from stillroom.encoders.tokens.describe_input import prompt_and_text
from stillroom.preflight.findings import Finding
from stillroom.storage.artifacts import Store


def check_inputs(recipe: Recipe, store: Store, stages: Collection[str]) -> Iterator[Finding]:
    """The prompt of each role, and the first and last tokens of its texts.

    Args:
        stages: of the artifacts to make; a teacher or a student that exists is left out.

    Raises:
        UserError: for the name of a prompt that the model does not have.
    """
    if "teacher" in stages:
        yield from _teacher_inputs(recipe, store)
    if "student" in stages:
        student = recipe.student
        yield from _model_inputs(
            "student", student.base, student, student.trust_remote_code, store, {}
        )


def _teacher_inputs(recipe: Recipe, store: Store) -> Iterator[Finding]:
    teacher = recipe.teacher
    code = teacher.trust_remote_code
    # Sources' prompts are the teacher's; a student uses its own.
    sources = {
        name: source.prompts
        for name, source in recipe.corpus.sources.items()
        if source.prompts is not None
    }
    if teacher.base is not None:
        yield from _model_inputs("teacher", teacher.base, teacher, code, store, sources)
    for number, member in enumerate(teacher.members or ()):
        field = f"teacher.members.{number}"
        yield from _model_inputs(field, member.base, member, code, store, sources)
    if teacher.api is not None:
        for role, text in teacher.api.prompts.model_dump().items():
            yield Finding(f"teacher {role}", True, prompt_and_text(text))


def _model_inputs(
    field: str,
    base: str,
    section: PromptedModel,
    code: bool,
    store: Store,
    sources: dict[str, Prompts],
) -> Iterator[Finding]:
    folder = locate_model(resolve_artifact_name(base, store), include_code=code)
    options = ContractOptions.from_fields(section)
    own = replace_prompts(
        folder_prompts(folder), options.prompts, options.prompt, where=f"{field}.prompt"
    )["prompts"]
    describe = input_describer(folder, options, trust_remote_code=code)
    for role, text in own.model_dump().items():
        yield Finding(f"{field} {role}", True, describe(text))
    for source, prompts in sources.items():
        for role, text in prompts.model_dump().items():
            yield Finding(f"{field} {role} of {source}", True, describe(text))
