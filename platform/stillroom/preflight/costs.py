"""GPU hours of a recipe, and what they cost at list prices; of models only config.json is read.

Operations over what a GPU does at its peak, times the share of it that training reaches (MFU).
Every text counts as if it were as long as it may be. Not in it are restarts, idle nodes, CPUs'
work, storage and traffic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from stillroom.config.phases import mines
from stillroom.config.recipe import Recipe
from stillroom.config.scale import Actors, Workers
from stillroom.config.student import OnPairs
from stillroom.encoders.model_names import config_of
from stillroom.errors import UserError
from stillroom.estimates.flops import Flops, peak_flops, step
from stillroom.estimates.memory import GPUS, Training
from stillroom.estimates.model_shape import Shape, shape_of
from stillroom.preflight.memory import student_shape, training

# Measured by tests/gpu/train_7b.py on one H200, with a batch of 64 and checkpointed activations;
# with GradCache it was .20. Other machines and recipes will differ: --mfu says another.
MFU = 0.26

UNSAID_TOKENS = 512  # of a text, where the recipe does not say what its teacher reads


@dataclass(frozen=True)
class Price:
    """US dollars a GPU hour."""

    provider: str
    gpu: str
    region: str
    machine: str
    on_demand: float
    spot: float


@dataclass(frozen=True)
class Cost:
    """Of one artifact. `gpus` is how many work at once; without any, it is the CPUs' work.

    `flops` is None where they cannot be known, and `why` says what is missing.
    """

    what: str
    flops: float | None
    gpus: float
    why: str = ""


@dataclass(frozen=True)
class Costs:
    """A recipe's, on one kind of GPU."""

    gpu: str
    mfu: float
    read_on: str
    parts: tuple[Cost, ...]
    prices: tuple[Price, ...]

    def hours(self, part: Cost) -> float | None:
        """GPU hours: however many work at once, they are as many."""
        if part.flops is None or not part.gpus:
            return None
        peak = peak_flops(self.gpu)
        assert peak is not None, "only those of GPUs whose peak is known are counted"
        return part.flops / (peak * self.mfu) / 3600

    @property
    def total(self) -> float:
        return sum(self.hours(part) or 0.0 for part in self.parts)

    def as_json(self) -> dict[str, Any]:
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
    told = yaml.safe_load(
        files("stillroom.preflight").joinpath("prices.yaml").read_text(encoding="utf-8")
    )
    return str(told["read_on"]), tuple(Price(**row) for row in told["prices"])


def costs(recipe: Recipe, *, mfu: float = MFU, texts: int | None = None) -> Costs:
    """What a recipe's GPUs have to do, and for how long.

    Args:
        mfu: the share of a GPU's peak that the operations counted here make up.
        texts: how many queries and passages the corpus holds; None: what embeds them is not
            counted.

    Raises:
        UserError: when that is no share, no GPU is named, or what one can do or costs is not known.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g}", "is no share of a GPU's peak", "Say one such as 0.35")
    if texts is not None and texts < 1:
        raise UserError(f"--texts {texts}", "is no number of texts", "Say how many there are")
    gpu = _gpu(recipe)
    read_on, prices = _price_list()
    of_gpu = tuple(price for price in prices if price.gpu == gpu)
    if not of_gpu:
        known = ", ".join(dict.fromkeys(price.gpu for price in prices))
        raise UserError(
            f"scale.teacher.gpu: {gpu}", "has no price in the table here", f"Use one of {known}"
        )
    return Costs(gpu, mfu, read_on, tuple(_parts(recipe, texts)), of_gpu)


def _gpu(recipe: Recipe) -> str:
    scale = recipe.scale
    pools = (scale.teacher, scale.student, scale.vectors, scale.report)
    if not any(pool.gpus for pool in pools):
        raise UserError(
            "scale", "asks for no GPU, and so there is nothing to price", "Set scale.teacher.gpus"
        )
    known = [gpu for gpu in GPUS if peak_flops(gpu)]
    named = {pool.gpu for pool in (scale.teacher, scale.student) if pool.gpu is not None}
    if len(named) != 1:
        found = f"are {' and '.join(sorted(named))}" if named else "is not set"
        raise UserError(
            "scale.teacher.gpu", f"{found}: prices are of one kind", f"Set {', '.join(known)}"
        )
    (gpu,) = named
    if gpu not in known:
        raise UserError(
            f"scale.teacher.gpu: {gpu}", "is not known here", f"Use one of {', '.join(known)}"
        )
    return gpu


def _parts(recipe: Recipe, texts: int | None) -> Iterator[Cost]:
    scale = recipe.scale
    teacher = _shape_of(recipe.teacher.base)
    for number, phase in enumerate(recipe.teacher.phases):
        run = training(recipe.teacher, phase, scale.teacher)
        yield _trained(f"teacher.phases[{number}]", teacher, run, phase.steps, scale.teacher)
    embedding = _forwards(recipe, teacher)
    yield _embedded("vectors", _times(_passes(recipe), embedding), texts, scale.vectors)
    student = student_shape(recipe.student)
    for number, taught in enumerate(recipe.student.phases):
        yield _trained(
            f"student.phases[{number}]", student, _taught(recipe, taught), taught.steps,
            scale.student, each=embedding if taught.online else 0.0,
        )  # fmt: skip
    both = None
    if embedding is not None and student is not None:
        alone = Flops.planned(student, Training()).forward([_most(recipe.student.max_tokens)])
        both = (2 if recipe.report.bases else 1) * (embedding + alone)
    yield _embedded("report", both, _evaluated(recipe), scale.report)


def _shape_of(base: str | None) -> Shape | None:
    config = None if base is None else config_of(base)
    return None if config is None else shape_of(config)


def _passes(recipe: Recipe) -> int:
    """How often the corpus is embedded: by the teacher of each phase whose negatives are looked
    for, by the untrained one, by the last. Other models that mine are not counted."""
    mined = [place for place, phase in enumerate(recipe.teacher.phases) if mines(phase)]
    of_pairs = [phase for phase in recipe.student.phases if isinstance(phase, OnPairs)]
    mines_last = any(phase.hard_negatives for phase in of_pairs)
    miners = recipe.negatives.miners
    by = {place for place in mined if "teacher" in miners}
    if not all(phase.online for phase in recipe.student.phases):
        by.add(len(recipe.teacher.phases))
    if mines_last and "teacher" in miners:
        by.add(len(recipe.teacher.phases))
    return len(by) + ("base" in miners and bool(mined or mines_last))


def _evaluated(recipe: Recipe) -> int | None:
    """Texts of the evaluation sets; None where one is not there yet."""
    held = recipe.corpus.held_out
    total = 0 if held is None else held.queries + held.passages
    for folder in recipe.corpus.evaluation.values():
        for name in ("corpus.jsonl", "queries.jsonl"):
            if not (file := Path(folder) / name).is_file():
                return None
            with file.open("rb") as lines:
                total += sum(1 for _ in lines)
    return total


def _times(count: int, each: float | None) -> float | None:
    return None if each is None else count * each


def _most(tokens: int | None) -> int:
    return tokens or UNSAID_TOKENS


def _forwards(recipe: Recipe, shape: Shape | None) -> float | None:
    """Of the teacher's vector of one text; 0 of an API's."""
    if recipe.teacher.api is not None:
        return 0.0
    if shape is None:
        return None
    latents = recipe.teacher.latents
    pooled = (latents.count, latents.heads, latents.head_dims)
    run = Training(rank=None, latents=pooled if recipe.teacher.pooling == "latent" else None)
    return Flops.planned(shape, run).forward([_most(recipe.teacher.max_tokens)])


def _taught(recipe: Recipe, phase: Any) -> Training:
    """A student's phase, of one worker; every weight is trained."""
    share = phase.global_batch // recipe.scale.student.fewest
    most = recipe.student.max_tokens or 10**9
    passages = (share, min(phase.passage_tokens, most))
    if isinstance(phase, OnPairs):
        candidates = (share * (1 + phase.hard_negatives), passages[1])
        return Training(embedded=((share, min(phase.query_tokens, most)), candidates))
    return Training(embedded=(passages,))


UNKNOWN = "its architecture is not known here"


def _trained(
    what: str,
    shape: Shape | None,
    run: Training,
    steps: int,
    scale: Workers,
    *,
    each: float | None = 0.0,
) -> Cost:
    """`each`: operations more for every text that a step embeds."""
    gpus = scale.fewest * scale.gpus
    if shape is None or each is None:
        return Cost(what, None, gpus, UNKNOWN)
    if run.precision == "float32" and gpus:
        return Cost(what, None, gpus, "float32, whose speed is not known here")
    taught = each * sum(texts for texts, _ in run.embedded)
    return Cost(what, steps * scale.fewest * (step(shape, run) + taught), gpus)


def _embedded(what: str, each: float | None, texts: int | None, scale: Actors) -> Cost:
    # The report measures one model after another, each on one actor.
    gpus = scale.gpus * (1 if what == "report" else scale.actors)
    if each is None:
        return Cost(what, None, gpus, UNKNOWN)
    if texts is None:
        missing = "evaluation sets are not there" if what == "report" else "--texts is not given"
        return Cost(what, None, gpus, missing)
    return Cost(what, texts * each, gpus)
