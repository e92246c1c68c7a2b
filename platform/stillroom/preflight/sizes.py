"""`stillroom check --texts`: bytes and memory of every stage of a recipe, for a number of texts.

Reads config.json of the models, and a sample of the sources. General texts, exports, and what is
generated or kept of an API are not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from stillroom.config.phases import TrainingPhase, needs_mined_negatives
from stillroom.config.recipe import Recipe
from stillroom.config.scale import TrainingWorkers
from stillroom.config.student import PairDistillation
from stillroom.errors import UserError
from stillroom.estimates.memory import (
    FLOAT,
    TrainingSetup,
    estimate_memory,
    frozen_and_trained_parameters,
)
from stillroom.estimates.model_shape import ModelShape
from stillroom.estimates.stage_sizes import (
    TOKENIZER,
    CorpusTexts,
    StageSize,
    corpus_size,
    negatives_size,
    report_size,
    training_size,
    vectors_size,
)
from stillroom.mining.ivf import memory_to_fill, memory_to_learn, number_of_lists
from stillroom.preflight.costs import corpus_passes, evaluation_texts, shape_of, student_setup
from stillroom.preflight.hours import Hours, estimate_hours
from stillroom.preflight.memory import on_workers, student_shape, training_setup
from stillroom.preflight.text_sample import TextSample, sample_texts
from stillroom.stages.corpus.shards import ChunkSizes
from stillroom.storage.root import is_local

# The stages whose artifacts a stage reads: each machine that does copies them from a remote root.
READS = {
    "corpus": (),
    "teacher": ("corpus",),
    "vectors": ("corpus", "teacher"),
    "negatives": ("corpus", "vectors"),
    "student": ("corpus", "teacher", "vectors", "negatives"),
    "report": ("corpus", "teacher", "student"),
    "release": ("corpus", "teacher", "student", "report"),
}


@dataclass(frozen=True)
class Sizes:
    """A recipe's stages in bytes, and the hours that their computing takes.

    Attributes:
        remote: the root is in object storage.
        sample: what the texts are taken to be.
        hours: by `StageSize.what`.
        unknown: models whose architecture is unknown, and which count as nothing.
    """

    remote: bool
    texts: CorpusTexts
    sample: TextSample
    stages: tuple[StageSize, ...]
    hours: dict[str, Hours]
    unknown: tuple[str, ...]

    @property
    def stored(self) -> float:
        """Bytes of all artifacts, which stay under the root."""
        return sum(stage.stored for stage in self.stages)

    @property
    def most_at_once(self) -> float:
        """Bytes under the root at the worst moment, with what the running stage deletes."""
        before, most = 0.0, 0.0
        for stage in self.stages:
            before += stage.stored
            most = max(most, before + stage.shared + (0.0 if self.remote else stage.local))
        return most

    def copies(self, stage: StageSize) -> float:
        """Bytes that a machine keeps of what a stage reads; none of a root that it can open."""
        read = READS[stage.what.partition(".")[0]]
        of_read = (each for each in self.stages if each.what.partition(".")[0] in read)
        return sum(each.stored for each in of_read) if self.remote else 0.0

    def driver_disk(self, stage: StageSize) -> float:
        """Bytes on the driver's disk outside of the root: also what it uploads at the end."""
        return self.copies(stage) + stage.stored + stage.local if self.remote else 0.0

    def as_json(self) -> dict[str, Any]:
        """The document of `check --texts --json`."""
        return {
            "texts": vars(self.texts),
            "basis": self.sample.basis,
            "root": "object storage" if self.remote else "disk",
            "stages": [
                {
                    "what": stage.what,
                    "stored": round(stage.stored),
                    "temporary": round(stage.shared + stage.local),
                    "disk_of_driver": round(self.driver_disk(stage)),
                    "disk_of_other_nodes": round(self.copies(stage)),
                    "memory": {kind: round(size) for kind, size in stage.memory.items()},
                    "processes": dict(stage.processes),
                    "memory_of_one_node": round(stage.total_memory),
                    "hours": self.hours[stage.what].value,
                    "hours_rest_on": self.hours[stage.what].basis,
                }
                for stage in self.stages
            ],
            "stored": round(self.stored),
            "most_at_once": round(self.most_at_once),
            "unknown": list(self.unknown),
        }


def estimate_sizes(recipe: Recipe, texts: int, *, core_flops: float) -> Sizes:
    """Bytes, memory and hours of every stage.

    Args:
        texts: queries and passages of the corpus.
        core_flops: float32 FLOP/s that a CPU core reaches in matrix products.

    Raises:
        UserError: for a number of texts that no corpus has.
    """
    if texts < 2:
        raise UserError(f"--texts {texts}", "is not a number of texts", "Give how many there are")
    sample = sample_texts(recipe)
    corpus, models = sample.of_texts(texts), _Models.of(recipe)
    stages = tuple(_stages(recipe, corpus, models))
    hours = estimate_hours(recipe, corpus, models.teacher_dims, core_flops=core_flops)
    return Sizes(
        remote=not is_local(recipe.root),
        texts=corpus,
        sample=sample,
        stages=stages,
        hours={stage.what: hours[stage.what] for stage in stages},
        unknown=models.unknown,
    )


@dataclass(frozen=True)
class _Models:
    """Teacher and student, where their architectures are known.

    Attributes:
        teachers: the base or the members; none of an API.
        teacher_dims, student_dims: of a vector; 0 where unknown.
    """

    teachers: tuple[ModelShape, ...]
    student: ModelShape | None
    teacher_dims: int
    student_dims: int
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> "_Models":
        teacher, student = recipe.teacher, student_shape(recipe.student)
        named = [teacher.base] if teacher.members is None else [m.base for m in teacher.members]
        bases = [base for base in named if base is not None]
        shapes = {base: shape_of(base) for base in bases}
        known = tuple(shape for base in bases if (shape := shapes[base]) is not None)
        dims = [shape.hidden for shape in known]
        teacher_dims = sum(dims) if teacher.combine == "concatenate" else max(dims, default=0)
        if teacher.api is not None:
            teacher_dims = teacher.api.dims
        elif teacher.dims is not None:
            teacher_dims = teacher.dims[0]
        own = 0 if student is None else student.hidden
        student_dims = recipe.student.output_dims or (
            teacher_dims if recipe.student.space == "teacher" else own
        )
        unknown = [base for base, shape in shapes.items() if shape is None]
        unknown += [recipe.student.base] if student is None else []
        return cls(known, student, teacher_dims, student_dims, tuple(unknown))

    @property
    def teacher_weights(self) -> int:
        return sum(shape.weights for shape in self.teachers)


def _stages(recipe: Recipe, texts: CorpusTexts, models: _Models) -> Iterator[StageSize]:
    scale = recipe.scale
    is_small = texts.text_bytes <= ChunkSizes().serial_bytes
    yield corpus_size(texts, 0 if is_small else _cores(recipe))
    kept = [*_teacher_phases(recipe, models)]
    yield from kept
    encodes = bool(models.teachers)
    yield vectors_size(
        texts,
        models.teacher_dims,
        artifacts=corpus_passes(recipe),
        model=0.0 if scale.vectors.gpus else FLOAT * models.teacher_weights,
        actors=scale.vectors.actors if encodes else 0,
    )
    index_memory = None
    if (ivf := recipe.negatives.ivf) is not None and texts.passages > ivf.min_passages:
        lists = ivf.nlist or number_of_lists(texts.passages)
        index_memory = max(
            memory(texts.passages, models.teacher_dims, lists)
            for memory in (memory_to_learn, memory_to_fill)
        )
    yield negatives_size(
        texts,
        recipe.negatives.per_query,
        artifacts=_times_mined(recipe),
        working_memory=scale.negatives.memory_gib * 2**30,
        index_memory=index_memory,
        actors=scale.negatives.actors,
    )
    students = [*_student_phases(recipe, models)]
    yield from students
    weights = models.teacher_weights + (0 if models.student is None else models.student.weights)
    bases = 2 if recipe.report.base_models else 1
    yield report_size(
        evaluation_texts(recipe) or 0,
        models.teacher_dims + models.student_dims,
        0.0 if scale.report.gpus else bases * FLOAT * weights,
    )
    released = sum(phase.stored for phase in (*kept[-1:], *students[-1:]))
    yield StageSize("release", released, 0.0, 0.0, {}, {})


def _cores(recipe: Recipe) -> int:
    """Cores that the recipe's largest stage asks for: cleaning uses what the cluster has."""
    scale = recipe.scale
    training = [workers.min_workers * workers.cpus for workers in (scale.teacher, scale.student)]
    pools = [pool.actors * pool.cpus for pool in (scale.vectors, scale.negatives, scale.report)]
    return math.ceil(max(training + pools))


def _times_mined(recipe: Recipe) -> int:
    """How many artifacts of negatives there are: of phases of the teacher, and of the student."""
    phases = recipe.student.phases
    of_student = any(isinstance(p, PairDistillation) and p.hard_negatives for p in phases)
    return sum(map(needs_mined_negatives, recipe.teacher.phases)) + of_student


def _teacher_phases(recipe: Recipe, models: _Models) -> Iterator[StageSize]:
    teacher, scale = recipe.teacher, recipe.scale.teacher
    if not teacher.phases:
        number_bytes = 2 if teacher.precision == "bfloat16" else FLOAT
        saved = sum(_tokenizer(s) + number_bytes * s.weights for s in models.teachers)
        loaded = FLOAT * models.teacher_weights
        yield training_size(
            "teacher", saved=saved, trained=0, worker=loaded, workers=0, checkpoints=0
        )
    for number, phase in enumerate(teacher.phases):
        what = f"teacher.phases[{number}]"
        if not models.teachers:
            yield _unknown(what)
            continue
        setup = training_setup(teacher, phase, scale)
        yield _phase(what, models.teachers[0], setup, phase, scale)


def _student_phases(recipe: Recipe, models: _Models) -> Iterator[StageSize]:
    for number, phase in enumerate(recipe.student.phases):
        what = f"student.phases[{number}]"
        if models.student is None:
            yield _unknown(what)
            continue
        scale = recipe.scale.student
        setup = replace(
            student_setup(recipe, number),
            precision="bfloat16" if recipe.student.precision == "bfloat16" else "float32",
        )
        yield _phase(what, models.student, on_workers(setup, scale), phase, scale)


def _phase(
    what: str, shape: ModelShape, setup: TrainingSetup, phase: TrainingPhase, scale: TrainingWorkers
) -> StageSize:
    _, trained = frozen_and_trained_parameters(shape, setup)
    memory = estimate_memory(shape, setup)
    in_main = sum(memory.offloaded.values()) if scale.gpus else memory.total
    # The last one holds the encoder.
    checkpoints = min(scale.keep_checkpoints, 1 + (phase.steps - 1) // scale.checkpoint_every)
    return training_size(
        what,
        saved=FLOAT * trained + _tokenizer(shape),
        trained=trained,
        worker=in_main,
        workers=scale.min_workers,
        checkpoints=checkpoints,
    )


def _tokenizer(shape: ModelShape) -> int:
    return TOKENIZER * shape.vocabulary


def _unknown(what: str) -> StageSize:
    return StageSize(what, 0.0, 0.0, 0.0, {}, {})
