"""TODO docstring: preflight/memory.py."""

from collections.abc import Iterator

from stillroom.config.phases import Joint, Mntp, PairTraining, Phase, Simcse
from stillroom.config.recipe import Recipe
from stillroom.config.scale import Workers
from stillroom.config.student import Student
from stillroom.config.teacher import Teacher
from stillroom.encoders.model_names import (
    config_of,
)
from stillroom.errors import UserError
from stillroom.estimates.memory import GIB, GPUS, ONLY_EMULATE_BFLOAT16, Training, advice, estimate
from stillroom.estimates.model_shape import Shape, resized, shape_of
from stillroom.preflight.findings import Finding


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
