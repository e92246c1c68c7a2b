"""GPU hours of a recipe and their price at list prices. Reads only config.json of models.

Hours are FLOPs divided by a GPU's peak FLOP/s and by the share of the peak that training reaches
(MFU). Every text counts with the longest length that the recipe allows. Restarts, idle nodes, work
on CPUs, storage and traffic are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from stillroom.config.phases import needs_mined_negatives
from stillroom.config.recipe import Recipe
from stillroom.config.scale import ActorPool, TrainingWorkers
from stillroom.config.student import PairDistillation, StudentPhase, distils_base, rehearsed_phase
from stillroom.encoders.model_names import read_config
from stillroom.errors import UserError
from stillroom.estimates.flops import FlopCounter, peak_flops, step_flops
from stillroom.estimates.memory import GPU_MEMORY_GIB, TrainingSetup
from stillroom.estimates.model_shape import ModelShape, model_shape
from stillroom.preflight.elsewhere import guard_texts
from stillroom.preflight.memory import student_shape, training_setup

# Measured by tests/gpu/train_7b.py on one H200, with a batch of 64 and checkpointed activations;
# with GradCache it was .20. Other machines and recipes will differ: set --mfu.
MFU = 0.26

DEFAULT_TOKENS = 512  # of a text, where the recipe sets no max_tokens
UNKNOWN_ARCHITECTURE = "its architecture is unknown"


@dataclass(frozen=True)
class Price:
    """US dollars per GPU hour."""

    provider: str
    gpu: str
    region: str
    machine: str
    on_demand: float
    spot: float


@dataclass(frozen=True)
class Cost:
    """The work of one artifact.

    Attributes:
        flops: None where they are unknown; `why` then says what is missing.
        gpus: used at the same time; 0 for work on CPUs.
    """

    what: str
    flops: float | None
    gpus: float
    why: str = ""


@dataclass(frozen=True)
class Costs:
    """A recipe's work and prices on one type of GPU.

    Attributes:
        read_on: the date of the prices.
    """

    gpu: str
    mfu: float
    read_on: str
    parts: tuple[Cost, ...]
    prices: tuple[Price, ...]

    def hours(self, part: Cost) -> float | None:
        """GPU hours of a part; None where they are unknown or no GPU works.

        They do not depend on how many GPUs share the work.
        """
        if part.flops is None or not part.gpus:
            return None
        peak = peak_flops(self.gpu)
        assert peak is not None, "estimate_costs refuses GPUs of unknown peak"
        return part.flops / (peak * self.mfu) / 3600

    @property
    def total(self) -> float:
        """GPU hours of all parts whose hours are known."""
        return sum(self.hours(part) or 0.0 for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        """The document of `check --cost --json`."""

        def money(hours: float) -> dict[str, dict[str, float]]:
            return {
                price.provider: {
                    "on_demand": round(hours * price.on_demand, 2),
                    "spot": round(hours * price.spot, 2),
                }
                for price in self.prices
            }

        return {
            "gpu": self.gpu,
            "mfu": self.mfu,
            "prices": {"read_on": self.read_on, "per_gpu_hour": [vars(p) for p in self.prices]},
            "parts": [
                {
                    "what": part.what,
                    "flops": part.flops,
                    "gpus": part.gpus,
                    "gpu_hours": (hours := self.hours(part)),
                    "hours": None if hours is None else hours / part.gpus,
                    "cost": None if hours is None else money(hours),
                    "why": part.why,
                }
                for part in self.parts
            ],
            "total": {"gpu_hours": self.total, "cost": money(self.total)},
        }


@cache
def _price_list() -> tuple[str, tuple[Price, ...]]:
    """The date of the prices, and the prices."""
    content = yaml.safe_load(
        files("stillroom.preflight").joinpath("prices.yaml").read_text(encoding="utf-8")
    )
    return str(content["read_on"]), tuple(Price(**row) for row in content["prices"])


def estimate_costs(recipe: Recipe, *, mfu: float = MFU, texts: int | None = None) -> Costs:
    """GPU hours and price of every part of a recipe.

    Args:
        mfu: the fraction of a GPU's peak FLOP/s that training reaches.
        texts: queries and passages of the corpus; None leaves their embedding out.

    Raises:
        UserError: for invalid arguments, and when the recipe names no GPU, or one whose speed or
            price is unknown.
    """
    if not 0 < mfu <= 1:
        raise UserError(
            f"--mfu {mfu:g}", "is not a share of a GPU's peak", "Use a number such as 0.35"
        )
    if texts is not None and texts < 1:
        raise UserError(f"--texts {texts}", "is not a number of texts", "Give how many there are")
    gpu = _gpu(recipe)
    read_on, prices = _price_list()
    gpu_prices = tuple(price for price in prices if price.gpu == gpu)
    if not gpu_prices:
        known = ", ".join(dict.fromkeys(price.gpu for price in prices))
        raise UserError(
            f"scale.teacher.gpu_type: {gpu}",
            "has no price in preflight/prices.yaml",
            f"Use one of {known}",
        )
    return Costs(gpu, mfu, read_on, tuple(computing_parts(recipe, texts)), gpu_prices)


def _gpu(recipe: Recipe) -> str:
    """The one type of GPU that the recipe names."""
    scale = recipe.scale
    pools = (scale.teacher, scale.student, scale.vectors, scale.report)
    if not any(pool.gpus for pool in pools):
        raise UserError(
            "scale", "uses no GPU, so there is nothing to price", "Set scale.teacher.gpus"
        )
    known = [gpu for gpu in GPU_MEMORY_GIB if peak_flops(gpu)]
    named = {pool.gpu_type for pool in (scale.teacher, scale.student) if pool.gpu_type is not None}
    if len(named) != 1:
        problem = f"differs: {' and '.join(sorted(named))}" if named else "is not set"
        raise UserError(
            "scale.teacher.gpu_type",
            f"{problem}. Prices are for one type",
            f"Set it to one of {', '.join(known)}",
        )
    (gpu,) = named
    if gpu not in known:
        raise UserError(
            f"scale.teacher.gpu_type: {gpu}", "is an unknown type", f"Use one of {', '.join(known)}"
        )
    return gpu


def computing_parts(recipe: Recipe, texts: int | None) -> Iterator[Cost]:
    """The FLOPs of every phase of training, of the corpus's vectors and of the report.

    Args:
        texts: queries and passages of the corpus; None leaves their embedding out.
    """
    scale = recipe.scale
    teacher = shape_of(recipe.teacher.base)
    for number, phase in enumerate(recipe.teacher.phases):
        setup = training_setup(recipe.teacher, phase, scale.teacher)
        yield _training(f"teacher.phases[{number}]", teacher, setup, phase.steps, scale.teacher)
    per_text = _flops_per_text(recipe, teacher)
    of_corpus = None if per_text is None else corpus_passes(recipe) * per_text
    yield _embedding("vectors", of_corpus, texts, scale.vectors)
    student = student_shape(recipe.student)
    for number, distillation in enumerate(recipe.student.phases):
        yield _training(
            f"student.phases[{number}]",
            student,
            student_setup(recipe, number),
            distillation.steps,
            scale.student,
            target_flops=_target_flops(recipe, number, per_text),
        )
    of_report = None
    if per_text is not None and student is not None:
        by_student = FlopCounter.planned(student, TrainingSetup()).forward(
            [recipe.student.max_tokens or DEFAULT_TOKENS]
        )
        of_report = (2 if recipe.report.base_models else 1) * (per_text + by_student)
    yield _embedding("report", of_report, evaluation_texts(recipe), scale.report)


def _target_flops(recipe: Recipe, number: int, teacher_flops: float | None) -> float | None:
    """FLOPs of a worker's step in the models that a phase distils and that embed its batches; 0
    where vectors are stored, None where a model's sizes are unknown."""
    total = 0.0
    for phase in _distilled_together(recipe, number):
        flops: float | None = 0.0
        if phase.online_teacher:
            flops = teacher_flops
        elif distils_base(phase):
            base = shape_of(recipe.student.base)
            tokens = [recipe.student.max_tokens or DEFAULT_TOKENS]
            known = None if base is None else FlopCounter.planned(base, TrainingSetup())
            flops = None if known is None else known.forward(tokens)
        if flops is None:
            return None
        total += flops * sum(texts for texts, _ in _student_texts(recipe, phase))
    return total


def _distilled_together(recipe: Recipe, number: int) -> list[StudentPhase]:
    """A phase of the student, and the one that it rehearses, if any."""
    phases = recipe.student.phases
    rehearsed = rehearsed_phase(phases, number)
    return [phases[number], *([] if rehearsed is None else [rehearsed])]


def shape_of(base: str | None) -> ModelShape | None:
    """The architecture of a base; None where it is unknown, or there is none."""
    config = None if base is None else read_config(base)
    return None if config is None else model_shape(config)


def corpus_passes(recipe: Recipe) -> int:
    """How often the corpus is embedded.

    By the teacher before each phase with mined negatives, by the trained teacher, and by the
    untrained one where it mines. Other models that mine are not counted.
    """
    last = len(recipe.teacher.phases)
    mined = [i for i, phase in enumerate(recipe.teacher.phases) if needs_mined_negatives(phase)]
    mines_for_student = any(
        phase.hard_negatives
        for phase in recipe.student.phases
        if isinstance(phase, PairDistillation)
    )
    miners = recipe.negatives.miners
    teachers = {i for i in mined if "teacher" in miners}  # by the number of phases behind them
    if not all(phase.online_teacher for phase in recipe.student.phases):
        teachers.add(last)
    if mines_for_student and "teacher" in miners:
        teachers.add(last)
    return len(teachers) + ("base" in miners and bool(mined or mines_for_student))


def evaluation_texts(recipe: Recipe) -> int | None:
    """Texts of the evaluation sets; None where a set does not exist yet."""
    held_out = recipe.corpus.held_out
    total = 0 if held_out is None else held_out.queries + held_out.passages
    total += guard_texts(recipe)
    for folder in recipe.corpus.evaluation.values():
        for name in ("corpus.jsonl", "queries.jsonl"):
            if not (file := Path(folder) / name).is_file():
                return None
            with file.open("rb") as lines:
                total += sum(1 for _ in lines)
    return total


def _flops_per_text(recipe: Recipe, shape: ModelShape | None) -> float | None:
    """FLOPs of the teacher's vector of one text; 0 for an API, None for unknown architectures."""
    if recipe.teacher.api is not None:
        return 0.0
    if shape is None:
        return None
    latents = recipe.teacher.latents
    pooling = (latents.count, latents.heads, latents.head_dims)
    setup = TrainingSetup(
        lora_rank=None, latents=pooling if recipe.teacher.pooling == "latent" else None
    )
    return FlopCounter.planned(shape, setup).forward([recipe.teacher.max_tokens or DEFAULT_TOKENS])


def student_setup(recipe: Recipe, number: int) -> TrainingSetup:
    """A student's phase on one worker; every weight is trained."""
    together = _distilled_together(recipe, number)
    texts = [texts for phase in together for texts in _student_texts(recipe, phase)]
    return TrainingSetup(embedded=tuple(texts))


def _student_texts(recipe: Recipe, phase: StudentPhase) -> list[tuple[int, int]]:
    """(texts, tokens of each) of one worker's step."""
    share = phase.global_batch // recipe.scale.student.min_workers
    max_tokens = recipe.student.max_tokens or 10**9
    passage_tokens = min(phase.passage_tokens, max_tokens)
    if isinstance(phase, PairDistillation):
        queries = (share, min(phase.query_tokens, max_tokens))
        return [queries, (share * (1 + phase.hard_negatives), passage_tokens)]
    return [(share, passage_tokens)]


def _training(
    what: str,
    shape: ModelShape | None,
    setup: TrainingSetup,
    steps: int,
    scale: TrainingWorkers,
    *,
    target_flops: float | None = 0.0,
) -> Cost:
    """The work of a training phase.

    Args:
        setup: of one worker.
        target_flops: of one worker's step, of the models that embed its batches, if any do.
    """
    gpus = scale.min_workers * scale.gpus
    if shape is None or target_flops is None:
        return Cost(what, None, gpus, UNKNOWN_ARCHITECTURE)
    if setup.precision == "float32" and gpus:
        return Cost(what, None, gpus, "trains in float32, whose speed is unknown")
    flops = step_flops(shape, setup) + target_flops
    return Cost(what, steps * scale.min_workers * flops, gpus)


def _embedding(
    what: str, flops_per_text: float | None, texts: int | None, scale: ActorPool
) -> Cost:
    """The work of embedding this many texts."""
    # The report measures one model after another, each on one actor.
    gpus = scale.gpus * (1 if what == "report" else scale.actors)
    if flops_per_text is None:
        return Cost(what, None, gpus, UNKNOWN_ARCHITECTURE)
    if texts is None:
        missing = "evaluation sets do not exist yet" if what == "report" else "--texts is not given"
        return Cost(what, None, gpus, missing)
    return Cost(what, texts * flops_per_text, gpus)
