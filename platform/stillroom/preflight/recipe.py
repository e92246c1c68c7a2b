"""`stillroom check`: every check of a run that is possible before anything expensive starts."""

from dataclasses import replace

from stillroom.config.recipe import Recipe
from stillroom.config.scale import TeacherApi
from stillroom.config.teacher import EmbeddingsApi
from stillroom.encoders.model_names import resolve_artifact_name
from stillroom.errors import UserError
from stillroom.openai_client.api_key import read_api_key
from stillroom.openai_client.requests import Usage, affordable_calls
from stillroom.pipeline.step import Step
from stillroom.preflight.data import check_data, phases_with_given_negatives
from stillroom.preflight.findings import Finding
from stillroom.preflight.machine import check_cluster, check_disk
from stillroom.preflight.memory import check_memory, student_shape
from stillroom.preflight.models import BaseModel, base_models, check_model
from stillroom.storage.artifacts import Store

# Disk per byte of a model's weights: the artifact, a checkpoint with the optimizer, the release.
DISK_PER_WEIGHT = 3


def check_recipe(recipe: Recipe, steps: list[Step]) -> list[Finding]:
    """Checks everything that the steps without an artifact will need.

    Raises:
        UserError: at the first thing that is missing or wrong.
    """
    store = Store(recipe.root)
    missing = [step for step in steps if not store.exists(step.stage, step.name, step.key)]
    stages = {step.stage for step in missing}
    findings = [Finding("recipe", True, f"{recipe.name}: {len(missing)} steps to make")]
    if "corpus" in stages or ("teacher" in stages and phases_with_given_negatives(recipe)):
        findings += check_data(recipe)
    disk_bytes = 0
    for model in base_models(recipe):
        if model.field.partition(".")[0] in stages:
            model_findings, weight_bytes = _check_base(recipe, model, store)
            findings += model_findings
            disk_bytes += DISK_PER_WEIGHT * weight_bytes
    if stages & {"teacher", "student"}:
        from stillroom.preflight.inputs import check_inputs
        from stillroom.preflight.tokenizers import check_tokenizers

        findings += check_inputs(recipe, store, stages)
        findings += check_tokenizers(recipe, store, stages)
    if "student" in stages:
        # Imported here: torch takes seconds to load, and other checks can fail before.
        from stillroom.preflight.similarity import check_similarity

        findings.append(check_similarity(recipe, store))
    if recipe.teacher.api is not None and stages & {"vectors", "report"}:
        findings.append(_check_api(recipe.teacher.api, recipe.scale.teacher_api, store, steps))
    if "teacher" in stages and recipe.teacher.phases:
        findings += check_memory(recipe)
    findings.append(check_disk(store, disk_bytes))
    if missing:
        findings.append(check_cluster())
    return findings


def _check_base(recipe: Recipe, model: BaseModel, store: Store) -> tuple[list[Finding], int]:
    """Findings about a base, and the bytes of the weights that training will start from."""
    student = recipe.student if model.field == "student.base" else None
    named = replace(model, name=resolve_artifact_name(model.name, store))
    size = check_model(named, weights=student is None or student.size is None)
    from stillroom.preflight.trial import try_model  # loads torch

    tried = try_model(named)
    findings = [Finding(model.field, True, f"{model.name}: {size / 2**20:,.0f} MiB; {tried}")]
    shape = None if student is None else student_shape(student)
    if shape is not None:
        size = 4 * shape.weights
        findings.append(Finding("student", True, f"{shape.weights / 1e6:,.1f} M parameters"))
    return findings, size


def _check_api(api: EmbeddingsApi, scale: TeacherApi, store: Store, steps: list[Step]) -> Finding:
    """The most that the teacher's vectors cost. Sends nothing.

    Raises:
        UserError: when the key is not in the environment, or the budget does not suffice.
    """
    read_api_key(scale.api_key_env, "scale.teacher_api.api_key_env")
    where = f"{api.model} at {api.base_url}"
    inputs = [each for step in steps for each in (step, *step.inputs.values())]
    corpus = next((step for step in inputs if step.stage == "corpus"), None)
    if corpus is None or not store.exists(corpus.stage, corpus.name, corpus.key):
        detail = f"{where}: its cost is known once the corpus exists (run --until corpus)"
        return Finding("teacher.api", True, detail)
    from stillroom.preflight.api_cost import estimate_api_tokens

    usage = Usage(estimate_api_tokens(api, store.open(corpus.stage, corpus.name, corpus.key)))
    if affordable_calls(Usage(), usage, **scale.budget.model_dump()) < 1:
        raise UserError(
            "scale.teacher_api.budget",
            f"is less than the vectors may cost: {usage.tokens_in:,} tokens",
            "Raise it, or use fewer texts",
        )
    cost = usage.cost(scale.budget.price_in, 0.0)
    priced = f", {cost:,.2f} at {scale.budget.price_in:g} per million" if cost else ""
    return Finding("teacher.api", True, f"{where}: at most {usage.tokens_in:,} tokens{priced}")
