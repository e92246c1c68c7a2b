"""What can be known before anything expensive starts: of a recipe, and of this machine."""

from collections.abc import Iterator
from pathlib import Path

from stillroom.config.corpus import Docstrings
from stillroom.config.phases import Contrastive
from stillroom.config.recipe import Recipe
from stillroom.config.scale import TeacherApi
from stillroom.config.teacher import Api
from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.records import LeftOut
from stillroom.encoders.contract import Contract
from stillroom.encoders.model_names import (
    ADAPTER_WEIGHTS,
    TOKENIZERS,
    adapter_base,
    locate,
    of_artifact,
)
from stillroom.encoders.remote_code import needs_code, refusal
from stillroom.errors import UserError
from stillroom.openai_client.client import Usage, affordable, key_in
from stillroom.pipeline.plan import Step
from stillroom.preflight.findings import Finding
from stillroom.preflight.machine import _cluster, _compiler, _disk
from stillroom.preflight.memory import memory, student_shape
from stillroom.stages.corpus import sources
from stillroom.storage.artifacts import Store

KNOW_THEIR_POOLING = ("contract.json", "modules.json")


def check_recipe(recipe: Recipe, steps: list[Step]) -> list[Finding]:
    """Looks at everything that the steps still to be made will need.

    Raises:
        UserError: at the first thing that is missing or wrong.
    """
    store = Store(recipe.root)
    missing = [step for step in steps if not store.exists(step.stage, step.name, step.key)]
    stages = {step.stage for step in missing}
    findings = [Finding("recipe", True, f"{recipe.name}: {len(missing)} steps to make")]
    if "corpus" in stages or ("teacher" in stages and _take_given(recipe)):
        findings += _data(recipe)
    needed = 0
    for field, base, pooling, trusted in _models(recipe):
        if field.partition(".")[0] in stages:
            student = recipe.student if field == "student.base" else None
            anew = student is not None and student.size is not None
            size = _model(field, of_artifact(base, store), pooling, trusted, weights=not anew)
            findings.append(Finding(field, True, f"{base}: {size / 2**20:,.0f} MiB"))
            made = None if student is None else student_shape(student)
            if made is not None:
                size = 4 * made.weights
                detail = f"{made.weights / 1e6:,.1f} M parameters"
                findings.append(Finding("student", True, detail))
            needed += 3 * size  # the artifact, a checkpoint with the optimizer, the release
    if recipe.teacher.api is not None and stages & {"vectors", "report"}:
        findings.append(_api(recipe.teacher.api, recipe.scale.teacher_api, store, steps))
    if "teacher" in stages and recipe.teacher.phases:
        findings += _compiler(recipe)
        findings += memory(recipe)
    findings.append(_disk(store, needed))
    if missing:
        findings.append(_cluster())
    return findings


def _data(recipe: Recipe) -> Iterator[Finding]:
    for name, folder in recipe.corpus.evaluation.items():
        kept = read_beir(Path(folder))
        detail = f"{len(kept.qrels):,} judged queries, {len(kept.passages):,} passages"
        yield Finding(f"corpus.evaluation.{name}", True, detail)
    with_negatives = dict.fromkeys(recipe.corpus.sources, 0)
    if recipe.corpus.synthetic is not None:
        with_negatives["synthetic"] = 1  # nearly all of its pairs, as yet to be written
    for name, source in recipe.corpus.sources.items():
        if isinstance(source, Docstrings):
            continue
        for part in sources.parts(source):
            left_out = LeftOut()
            notes: dict[str, int] = {}
            if part.kind == "pairs":
                count, having = 0, 0
                for pair in sources.pairs(part, left_out):
                    count, having = count + 1, having + bool(pair.negatives)
                with_negatives[name] += having
                notes["with negatives"] = having
            else:
                read = sources.passages if part.kind == "passages" else sources.conversations
                count = sum(1 for _ in read(part, left_out))
            notes.update({f"left out: {why}": n for why, n in left_out.counts.items()})
            place = part.file or ", ".join(source.places())
            noted = "".join(f", {n:,} {what}" for what, n in notes.items())
            detail = f"{place}: {count:,} {part.kind}{noted}"
            yield Finding(f"corpus.sources.{name}", True, detail)
    for field, phase in _take_given(recipe).items():
        if not any(with_negatives[name] for name in phase.mix or with_negatives):
            raise UserError(
                f"{field}.negatives: given",
                "no pair of its sources comes with negatives",
                "Give some, or set hard_negatives: 0 or negatives: mined",
            )


def _take_given(recipe: Recipe) -> dict[str, Contrastive]:
    """The phases whose hard negatives came with the pairs, by field."""
    return {
        f"teacher.phases[{i}]": phase
        for i, phase in enumerate(recipe.teacher.phases)
        if isinstance(phase, Contrastive) and phase.hard_negatives and phase.negatives == "given"
    }


def _models(recipe: Recipe) -> Iterator[tuple[str, str, str | None, bool]]:
    """(field, base, pooling, whether its code may run) of each model that is begun with."""
    teacher, student = recipe.teacher, recipe.student
    if teacher.base is not None:
        yield "teacher.base", teacher.base, teacher.pooling, teacher.trust_remote_code
    for number, one in enumerate(teacher.members or ()):
        field = f"teacher.members.{number}.base"
        yield field, one.base, one.pooling, teacher.trust_remote_code
    yield "student.base", student.base, student.pooling, student.trust_remote_code


def _api(api: Api, scale: TeacherApi, store: Store, steps: list[Step]) -> Finding:
    """What the teacher's vectors cost at most. Asks nobody.

    Raises:
        UserError: when the key is not in the environment, or the budget does not suffice.
    """
    key_in(scale.key_variable, "scale.teacher_api.key_variable")
    where = f"{api.model} at {api.base_url}"
    read = [one for step in steps for one in (step, *step.inputs.values())]
    corpus = next((one for one in read if one.stage == "corpus"), None)
    if corpus is None or not store.exists(corpus.stage, corpus.name, corpus.key):
        detail = f"{where}: its cost is known once the corpus is made (run --until corpus)"
        return Finding("teacher.api", True, detail)
    from stillroom.preflight.api_cost import estimate

    took = Usage(estimate(api, store.open(corpus.stage, corpus.name, corpus.key)))
    if affordable(Usage(), took, **scale.budget.model_dump()) < 1:
        raise UserError(
            "scale.teacher_api.budget",
            f"the vectors may take {took.tokens_in:,} tokens, which is more",
            "Raise it, or take fewer texts",
        )
    cost = took.cost(scale.budget.price_in, 0.0)
    priced = f", {cost:,.2f} at {scale.budget.price_in:g} a million" if cost else ""
    return Finding("teacher.api", True, f"{where}: at most {took.tokens_in:,} tokens{priced}")


def _model(
    field: str, base: str, pooling: str | None, trusted: bool, *, weights: bool = True
) -> int:
    """Bytes of a model's weights, which it must have unless they are not wanted; of an adapter's,
    its base's counted."""
    folder = locate(base, code=trusted)
    if (adapts := adapter_base(folder)) is not None:
        own = (folder / ADAPTER_WEIGHTS).stat().st_size
        if pooling is None and (folder / "modules.json").is_file():
            pooling = "its own"
        return own + _model(field, adapts, pooling, trusted)
    if (folder / "contract.json").is_file():
        Contract.read(folder)  # and not of several models, or of an API
    if needs_code(folder) and not trusted:
        raise refusal(folder)
    if not (folder / "config.json").is_file() and not (folder / "contract.json").is_file():
        raise UserError(
            f"{field}: {base}", "holds no config.json", "Name a folder that transformers can load"
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(
            f"{field}: {base}",
            f"has no tokenizer (none of {', '.join(TOKENIZERS)})",
            "Save the model's tokenizer into its folder",
        )
    if pooling is None and not any((folder / name).is_file() for name in KNOW_THEIR_POOLING):
        raise UserError(
            f"{field}: {base}",
            "is a plain model, which does not say how its states become a vector",
            f"Set {field.partition('.')[0]}.pooling to mean, weighted_mean, last or cls",
        )
    files = list(folder.rglob("*.safetensors"))
    if weights and not files:
        raise UserError(
            f"{field}: {base}",
            "has no weights in Safetensors",
            "Convert them: pickled weights can run code and are never loaded",
        )
    return sum(file.stat().st_size for file in files)
