"""Hours of a recipe's stages: their arithmetic, divided by what the hardware reaches of its peak.

Every text counts with the longest length that the recipe allows. The start of processes, restarts,
reading and writing are not counted, nor what a model costs besides its matrix products, which is
most of the time of a very small one.
"""

from dataclasses import dataclass

from stillroom.config.recipe import Ivf, Recipe
from stillroom.config.scale import ActorPool, TrainingWorkers
from stillroom.estimates.flops import peak_flops
from stillroom.estimates.stage_sizes import CorpusTexts
from stillroom.mining.ivf import number_of_lists
from stillroom.preflight.costs import MFU, Cost, computing_parts

# Of float32 matrix products, by models on two cores of an EPYC (Zen 5).
CPU_SHARE = 0.6
# Of the same, by exact search in bfloat16, measured once on that machine; by lists of an index.
SEARCH_SHARE, IVF_SHARE = 0.6, 0.1
ASSUMED_PROBES = 32  # lists that a query reads, where their number is chosen by recall
CLEANED_BYTES_PER_CORE_S = 9e6  # of texts, by tests/benchmarks/data.py


@dataclass(frozen=True)
class Hours:
    """The hours of a stage; None where nothing is known.

    Attributes:
        basis: what they rest on, or why they are not known.
    """

    value: float | None
    basis: str


def estimate_hours(
    recipe: Recipe, texts: CorpusTexts, dims: int, *, core_flops: float
) -> dict[str, Hours]:
    """Stage, with its phase, → hours on the recipe's scale.

    Args:
        dims: of the teacher's vectors.
        core_flops: float32 FLOP/s that a CPU core reaches in matrix products.
    """
    scale = recipe.scale
    pools: dict[str, TrainingWorkers | ActorPool] = {
        "teacher": scale.teacher, "student": scale.student, "vectors": scale.vectors,
        "report": scale.report,
    }  # fmt: skip
    hours = {
        part.what: _computing(recipe, part, pools[part.what.partition(".")[0]], core_flops)
        for part in computing_parts(recipe, texts.texts)
    }
    cores = max(_cpus(pool) for pool in (*pools.values(), scale.negatives))
    cleaning = texts.text_bytes / CLEANED_BYTES_PER_CORE_S / cores / 3600
    hours["corpus"] = Hours(
        cleaning, f"{CLEANED_BYTES_PER_CORE_S / 1e6:.0f} MB a second and core, {cores:g} cores"
    )
    hours["negatives"] = _mining(recipe, texts, dims, core_flops)
    hours["teacher"] = hours["release"] = Hours(None, "")  # they copy files
    return hours


def _cpus(pool: TrainingWorkers | ActorPool) -> float:
    count = pool.min_workers if isinstance(pool, TrainingWorkers) else pool.actors
    return count * pool.cpus


def _computing(
    recipe: Recipe, part: Cost, pool: TrainingWorkers | ActorPool, core_flops: float
) -> Hours:
    if part.flops is None:
        return Hours(None, part.why)
    if part.gpus:
        named = {s.gpu_type for s in (recipe.scale.teacher, recipe.scale.student)} - {None}
        peaks = [peak_flops(name) for name in named if name is not None]
        if len(peaks) != 1 or peaks[0] is None:
            return Hours(None, "scale.teacher.gpu_type names no GPU whose peak is known")
        seconds = part.flops / (peaks[0] * MFU * part.gpus)
        return Hours(seconds / 3600, f"{MFU:.0%} of {part.gpus:g} GPUs' peak")
    # The report measures one model after another, each on one actor.
    cpus = pool.cpus if part.what == "report" else _cpus(pool)
    seconds = part.flops / (core_flops * CPU_SHARE * cpus)
    return Hours(
        seconds / 3600, f"{CPU_SHARE:.0%} of {cpus:g} cores' {core_flops / 1e9:.0f} GFLOP/s"
    )


def _mining(recipe: Recipe, texts: CorpusTexts, dims: int, core_flops: float) -> Hours:
    section, pool = recipe.negatives, recipe.scale.negatives
    dense = sum(miner != "bm25" for miner in section.miners)
    if dense < len(section.miners):
        return Hours(None, "the speed of BM25 depends on the words")
    if pool.gpus:
        return Hours(None, "its speed on GPUs was not measured")
    products, share = float(texts.passages), SEARCH_SHARE
    if section.ivf is not None and texts.passages > section.ivf.min_passages:
        products, share = _products_of_lists(section.ivf, texts.passages), IVF_SHARE
    seconds = 2 * dims * products * texts.pairs * dense / (core_flops * share * _cpus(pool))
    return Hours(
        seconds / 3600,
        f"{share:.0%} of {_cpus(pool):g} cores' {core_flops / 1e9:.0f} GFLOP/s",
    )


def _products_of_lists(ivf: Ivf, passages: int) -> float:
    """Vectors that a query is compared with: the centres of all lists, and the lists it reads."""
    lists = ivf.nlist or number_of_lists(passages)
    probes = ivf.nprobe or ASSUMED_PROBES
    return float(lists + passages * min(1.0, probes / lists))
