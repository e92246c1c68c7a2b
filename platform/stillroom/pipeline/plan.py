"""A recipe's steps, with names, inputs and keys. No torch, no Ray."""

from collections.abc import Iterator
from typing import Any

from stillroom.config.base import Section
from stillroom.config.phases import needs_mined_negatives
from stillroom.config.recipe import Recipe
from stillroom.config.student import PairDistillation, Student, distils_base, rehearsed_phase
from stillroom.config.teacher import Teacher
from stillroom.encoders.model_names import model_fingerprint, resolve_artifact_name
from stillroom.pipeline.sources import (
    corpus_sources,
    general_sources,
    guard_sources,
    teacher_sources,
)
from stillroom.pipeline.step import Step, by_stage
from stillroom.storage.artifacts import Store


def pipeline(recipe: Recipe, *, gate: bool = True) -> list[Step]:
    """The recipe's steps, each after those that it reads.

    Args:
        gate: without it a release is made independent of the measurements, under a different key.

    Raises:
        UserError: when a file or model that the recipe names is missing.
    """
    synthetic = synthetic_steps(recipe)
    corpus = corpus_step(recipe, *synthetic)
    *teacher_phases, teacher = teacher_steps(recipe, corpus)
    *student_phases, student = student_steps(recipe, corpus, teacher)
    negatives = [step for step in student_phases if step.stage == "negatives"][-1:]
    report = report_step(recipe, corpus, teacher, student, *negatives)
    release = release_step(recipe, corpus, teacher, student, report, gate=gate)
    steps = [
        *synthetic, corpus, *teacher_phases, teacher, *student_phases, student, report, release
    ]  # fmt: skip
    return list({step.ref: step for step in steps}.values())  # phases may share a miner


def synthetic_steps(recipe: Recipe) -> list[Step]:
    """The step in which a language model writes training data; none where the recipe has none.

    Raises:
        UserError: when a file or model that it reads is missing.
    """
    synthetic = recipe.corpus.synthetic
    if synthetic is None:
        return []
    sources: dict[str, str] = {}
    names: tuple[str, ...] = ()  # of the corpus's sources that it reads
    if synthetic.passages is not None:
        names = synthetic.passages.sources or tuple(recipe.corpus.sources)
        sources = corpus_sources(recipe)
        retriever = synthetic.passages.retriever
        if retriever.startswith(("teacher/", "student/")):
            sources["retriever"] = Store(recipe.root).find(retriever).key
        elif retriever != "bm25":
            sources["retriever"] = model_fingerprint(retriever)
    # The section's other fields do not influence the result, so they are not part of its key.
    unrelated: dict[str, Any] = {
        "max_pairs": None, "held_out": None, "evaluation": {}, "texts": None,
    }  # fmt: skip
    section = recipe.corpus.model_copy(
        update={"sources": {name: recipe.corpus.sources[name] for name in names}, **unrelated}
    )
    return [Step("synthetic", recipe.name, _seeded(recipe, section), {}, sources)]


def corpus_step(recipe: Recipe, *synthetic: Step) -> Step:
    """Reads, cleans, decontaminates and splits the data."""
    args = _seeded(recipe, recipe.corpus)
    if recipe.evaluation.measures_elsewhere:
        args["evaluation"] = recipe.evaluation
    sources = {**corpus_sources(recipe), **general_sources(recipe), **guard_sources(recipe)}
    return Step("corpus", recipe.name, args, by_stage(*synthetic), sources)


def teacher_steps(recipe: Recipe, corpus: Step) -> Iterator[Step]:
    """A step per phase of the teacher, or one for the base as it is; the teacher comes last.

    If a phase uses mined negatives, the phase before it mines them.
    """
    phases = recipe.teacher.phases
    if not phases:
        yield _untrained_teacher(recipe, recipe.name)
        return
    inputs = by_stage(corpus)
    for number, phase in enumerate(phases, start=1):
        if needs_mined_negatives(phase):
            name = f"{recipe.name}-phase{number - 1}"
            *mining, negatives = _mining_steps(recipe, name, corpus, inputs.get("teacher"))
            yield from [*mining, negatives]
            inputs = {**inputs, **by_stage(negatives)}
        teacher = Step(
            "teacher",
            _phase_name(recipe, number, len(phases)),
            {**_seeded(recipe, _without_phases(recipe.teacher)), "phase": phase},
            inputs,
            teacher_sources(recipe),
        )
        yield teacher
        inputs = by_stage(corpus, teacher)


def student_steps(recipe: Recipe, corpus: Step, teacher: Step) -> Iterator[Step]:
    """A step per phase of the student, after the vectors and negatives that it needs; the student
    comes last."""
    phases = recipe.student.phases
    phase_before: dict[str, Step] = {}
    base_teaches = {"base_teaches": True} if any(map(distils_base, phases)) else {}
    for number, phase in enumerate(phases, start=1):
        args = {
            **_seeded(recipe, _without_phases(recipe.student)), "phase": phase, **base_teaches,
        }  # fmt: skip
        if (rehearsed := rehearsed_phase(phases, number - 1)) is not None:
            args["rehearsed"] = rehearsed
        inputs = {**by_stage(corpus, teacher), **phase_before}
        if phase.online_teacher:
            args |= _trusted(teacher=recipe.teacher)
        else:
            vectors = _teacher_vectors(recipe, recipe.name, corpus, teacher)
            yield vectors
            inputs |= by_stage(vectors)
        if isinstance(phase, PairDistillation) and phase.hard_negatives:
            *mining, negatives = _mining_steps(recipe, recipe.name, corpus, teacher)
            yield from [*mining, negatives]
            inputs |= by_stage(negatives)
        name = _phase_name(recipe, number, len(phases))
        sources = {"base": model_fingerprint(recipe.student.base)}
        student = Step("student", name, args, inputs, sources)
        yield student
        phase_before = by_stage(student)


def report_step(
    recipe: Recipe, corpus: Step, teacher: Step, student: Step, *negatives: Step
) -> Step:
    """Measures teacher, student and baselines."""
    args = {"section": recipe.report, **_trusted(teacher=recipe.teacher, student=recipe.student)}
    return Step("report", recipe.name, args, by_stage(corpus, teacher, *negatives, student))


def release_step(
    recipe: Recipe, corpus: Step, teacher: Step, student: Step, report: Step, *, gate: bool
) -> Step:
    """Packs the release for serving, if the gate passes."""
    args = {
        "section": recipe.release,
        "gate": gate,
        **_trusted(teacher=recipe.teacher, student=recipe.student),
    }
    return Step("release", recipe.name, args, by_stage(corpus, teacher, student, report))


def _mining_steps(recipe: Recipe, name: str, corpus: Step, teacher: Step | None) -> list[Step]:
    """The vectors of each miner, then the negatives, last.

    The teacher's vectors are the input `vectors`; those of miner number i are `vectors_i`.
    """
    steps: list[Step] = []
    inputs = by_stage(corpus)
    for number, miner in enumerate(recipe.negatives.miners):
        if miner == "bm25":
            continue
        role = f"vectors_{number}"
        if miner == "teacher":
            assert teacher is not None, "the config allows no first phase with this miner"
            role = "vectors"
            vectors = _teacher_vectors(recipe, name, corpus, teacher)
        elif miner == "base":
            base = _untrained_teacher(recipe, f"{recipe.name}-base")
            vectors = _teacher_vectors(recipe, f"{recipe.name}-base", corpus, base)
            steps.append(base)
        else:
            vectors = Step(
                "vectors",
                f"{recipe.name}-miner{number}",
                {"section": recipe.vectors, "model": miner},
                by_stage(corpus),
                {"model": model_fingerprint(resolve_artifact_name(miner, Store(recipe.root)))},
            )
        steps.append(vectors)
        inputs[role] = vectors
    sources = {}
    if recipe.negatives.cross_encoder is not None:
        sources["cross_encoder"] = model_fingerprint(recipe.negatives.cross_encoder)
    return [*steps, Step("negatives", name, _seeded(recipe, recipe.negatives), inputs, sources)]


def _untrained_teacher(recipe: Recipe, name: str) -> Step:
    args = {**_seeded(recipe, _without_phases(recipe.teacher)), "phase": None}
    return Step("teacher", name, args, {}, teacher_sources(recipe))


def _teacher_vectors(recipe: Recipe, name: str, corpus: Step, teacher: Step) -> Step:
    args = {"section": recipe.vectors, **_trusted(teacher=recipe.teacher)}
    # Only a student trains on general texts: miners and earlier phases do not embed them.
    if recipe.corpus.texts is not None and name == recipe.name:
        args["general"] = True
    return Step("vectors", name, args, by_stage(corpus, teacher))


def _phase_name(recipe: Recipe, number: int, count: int) -> str:
    """The last phase has the recipe's own name."""
    return recipe.name if number == count else f"{recipe.name}-phase{number}"


def _seeded(recipe: Recipe, section: Section) -> dict[str, Any]:
    return {"section": section, "seed": recipe.seed}


def _without_phases(section: Teacher | Student) -> Section:
    """A phase's step depends on that phase alone, and on the steps before it."""
    return section.model_copy(update={"phases": ()})


def _trusted(**sections: Teacher | Student) -> dict[str, Any]:
    """Which models may run code that comes with them; only the recipe decides it, never an
    artifact.
    """
    roles = [role for role, section in sections.items() if section.trust_remote_code]
    return {"trusted": roles} if roles else {}
