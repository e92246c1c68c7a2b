"""Whether a recipe's training fits its GPUs. Reads only config.json of models."""

from collections.abc import Iterator
from dataclasses import replace

from stillroom.config.phases import JointPhase, MntpPhase, PairPhase, SimcsePhase, TeacherPhase
from stillroom.config.recipe import Recipe
from stillroom.config.scale import TrainingWorkers
from stillroom.config.student import Student
from stillroom.config.teacher import Teacher
from stillroom.encoders.model_names import read_config
from stillroom.errors import UserError
from stillroom.estimates.memory import (
    GIB,
    GPU_MEMORY_GIB,
    WITHOUT_NATIVE_BFLOAT16,
    TrainingSetup,
    estimate_memory,
    suggest_settings,
)
from stillroom.estimates.model_shape import ModelShape, model_shape, resized_config
from stillroom.preflight.findings import Finding


def student_shape(section: Student) -> ModelShape | None:
    """The student's shape without its projection; None for an unknown architecture.

    Raises:
        UserError: when the base has no such layer, or fewer tokens.
    """
    config = read_config(section.base)
    shape = None if config is None else model_shape(config)
    if config is None or shape is None:
        return None
    count = section.layers
    if isinstance(count, tuple):
        for number in count:
            if number >= shape.layers:
                raise UserError(
                    "student.layers", f"there is no layer {number}", f"Use 0 to {shape.layers - 1}"
                )
        count = len(count)
    elif count is not None and count > shape.layers:
        raise UserError(
            "student.layers",
            f"{count} is more than the base's {shape.layers} layers",
            f"At most {shape.layers}",
        )
    if section.vocabulary_size is not None and section.vocabulary_size >= shape.vocabulary:
        raise UserError(
            f"student.vocabulary_size: {section.vocabulary_size}",
            f"the base has only {shape.vocabulary} tokens",
            "Set fewer, or leave it out",
        )
    resized = model_shape(
        resized_config(
            config,
            layers=count,
            vocabulary_size=section.vocabulary_size,
            size=None if section.size is None else section.size.model_dump(exclude_none=True),
        )
    )
    assert resized is not None, "resizing keeps the architecture"
    return resized


def check_memory(recipe: Recipe) -> Iterator[Finding]:
    """Checks the memory that each phase of the teacher takes on a worker.

    Raises:
        UserError: when a phase does not fit scale.teacher.gpu_type, or that type is unknown.
    """
    teacher, scale = recipe.teacher, recipe.scale.teacher
    if scale.gpu_type is not None and scale.gpu_type not in GPU_MEMORY_GIB:
        raise UserError(
            f"scale.teacher.gpu_type: {scale.gpu_type}",
            "is an unknown type",
            f"Use one of {', '.join(GPU_MEMORY_GIB)}",
        )
    assert teacher.base is not None, "only a teacher with a base has phases"
    config = read_config(teacher.base)
    shape = None if config is None else model_shape(config)
    for number, phase in enumerate(teacher.phases):
        field = f"teacher.phases[{number}]"
        if shape is None:
            yield Finding(f"{field} memory", True, "not estimated: the architecture is unknown")
            continue
        setup = training_setup(teacher, phase, scale)
        needed = estimate_memory(shape, setup)
        detail = str(needed)
        if scale.gpu_type is not None:
            # A worker has one GPU or a part of one.
            usable = GPU_MEMORY_GIB[scale.gpu_type] * min(1.0, scale.gpus or 1.0) * GIB
            if needed.total > usable:
                excess = (needed.total - usable) / GIB
                settings = suggest_settings(shape, setup, usable)
                raise UserError(
                    f"scale.teacher.gpu_type: {scale.gpu_type}",
                    f"{field} needs {excess:.1f} GiB more than the {usable / GIB:.1f} of a worker "
                    f"({detail})",
                    f"Set {' '.join(f'scale.teacher.{setting}' for setting in settings)}"
                    if settings
                    else "Name a bigger GPU, or set zero_stage 3 on more workers",
                )
            detail += f"; fits {scale.gpu_type}, {usable / GIB:.1f} GiB"
        yield Finding(f"{field} memory", True, detail)


def training_setup(teacher: Teacher, phase: TeacherPhase, scale: TrainingWorkers) -> TrainingSetup:
    """A phase as the plain numbers that memory and FLOPs are estimated from."""
    share = phase.global_batch // scale.min_workers
    max_tokens = teacher.max_tokens or 10**9
    embedded: tuple[tuple[int, int], ...] = ()
    predicted: tuple[int, int, float] | None = None
    candidates, sizes = 0, 1
    if isinstance(phase, MntpPhase):
        predicted = (share, min(phase.max_tokens, max_tokens), phase.mask_probability)
    elif isinstance(phase, SimcsePhase):
        embedded = ((share, min(phase.max_tokens, max_tokens)),) * 2
        candidates = phase.global_batch
    elif isinstance(phase, PairPhase):
        passages = 1 + phase.hard_negatives
        embedded = (
            (share, min(phase.query_tokens, max_tokens)),
            (share * passages, min(phase.passage_tokens, max_tokens)),
        )
        columns = passages * (2 if phase.passage_to_passage else 1) + phase.query_to_query
        candidates, sizes = phase.global_batch * columns, len(phase.matryoshka or (0,))
        if isinstance(phase, JointPhase):
            predicted = (phase.generation_batch // scale.min_workers, phase.generation_tokens, 1.0)
    computes_bfloat16 = scale.gpus > 0 and scale.gpu_type not in WITHOUT_NATIVE_BFLOAT16
    precision = teacher.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16 else "float32"
    lora, latents = teacher.lora, teacher.latents
    setup = TrainingSetup(
        precision=precision,
        lora_rank=None if lora is None else lora.rank,
        targets="all-linear" if lora is None else lora.target_modules,
        dropout=0.0 if lora is None else lora.dropout,
        use_dora=lora is not None and lora.use_dora,
        latents=(latents.count, latents.heads, latents.head_dims)
        if teacher.pooling == "latent"
        else None,
        lm_head=predicted is not None,
        embedded=embedded,
        predicted=predicted,
        candidates=candidates,
        matryoshka_sizes=sizes,
    )
    return on_workers(setup, scale)


def on_workers(setup: TrainingSetup, scale: TrainingWorkers) -> TrainingSetup:
    """A phase's setup on the fewest workers of a scale, when each holds the most."""
    return replace(
        setup,
        workers=scale.min_workers,
        deepspeed=scale.engine == "deepspeed",
        zero_stage=scale.zero_stage,
        offload=scale.offload,
        micro_batch_tokens=scale.micro_batch_tokens,
        gradcache=scale.gradcache,
        gradient_checkpointing=scale.gradient_checkpointing,
    )
