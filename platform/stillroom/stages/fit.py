"""Ray Train around the one loop: teacher and student differ by a `Task`."""

import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from stillroom.artifacts import Draft
from stillroom.config import Optimisation, Tracking, Workers
from stillroom.encoders.contract import FILE as CONTRACT
from stillroom.encoders.encode import Encoder
from stillroom.encoders.store import merged, save
from stillroom.errors import UserError
from stillroom.learning.batches import Ahead
from stillroom.learning.engine import DeepSpeedEngine, Engine, TorchEngine
from stillroom.learning.loop import schedule, train
from stillroom.learning.objectives import Objective

METRICS = "metrics.jsonl"  # one line a step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is trained, on what, towards what. Travels to the workers by pickle.

    Attributes:
        encoder, batches: functions, so that each worker reads its own copy from storage; the
            latter is given the encoder, and the worker's rank and world.
        merges: the result is saved whole, for its adapter lies on weights that no base holds.
    """

    encoder: Callable[[], Encoder]
    batches: Callable[[Encoder, dict[str, int]], Any]
    objective: Objective
    settings: Optimisation
    seed: int
    merges: bool = False


def fit(task: Task, scale: Workers, tracking: Tracking, out: Draft) -> dict[str, float]:
    """Trains under Ray Train and leaves the encoder, and metrics.jsonl, in the draft.

    A worker that dies is replaced, and the run goes on from the newest checkpoint; a run whose
    driver died goes on from there when the same step is run again.

    Returns:
        The last step's figures.
    """
    storage = out.store.place(".train")
    name = f"{out.stage}-{out.path.name}"
    trainer = TorchTrainer(
        functools.partial(_work, task, scale),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpus > 0,
            resources_per_worker={
                "CPU": scale.cpus,
                **({"GPU": scale.gpus} if scale.gpus else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": _environment(scale)},
        ),
        torch_config=TorchConfig(backend="nccl" if scale.gpus else "gloo"),
    )
    try:
        result = trainer.fit()
    except WorkerGroupError as fault:
        # What the user can mend is told as such, not as a worker's crash.
        for failure in fault.worker_failures.values():
            cause: BaseException | None = failure
            while cause is not None:
                if isinstance(cause, UserError):
                    raise cause from fault
                cause = getattr(cause, "cause", None) or cause.__cause__
        raise
    assert result.checkpoint is not None and result.metrics is not None
    with result.checkpoint.as_directory() as folder:
        for part in Path(folder).iterdir():
            if part.is_dir():
                shutil.copytree(part, out.path / part.name, dirs_exist_ok=True)
            else:
                shutil.copy2(part, out.path / part.name)
    out.store.forget(f".train/{name}")
    return {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}


def _environment(scale: Workers) -> dict[str, str]:
    threads = str(max(1, int(scale.cpus)))
    found = {
        "OMP_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",  # what libraries tell one another
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would print every line of ours twice
    }
    if not scale.gpus:
        # Without it DeepSpeed looks for the machine's GPUs, which these workers were not given.
        found["DS_ACCELERATOR"] = "cpu"
    return found


def _work(task: Task, scale: Workers) -> None:
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats our figures
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(task.seed)
    encoder = task.encoder().to(ray.train.torch.get_device())
    encoder.train()
    settings = task.settings
    batches = task.batches(encoder, {"rank": rank, "world": world})
    engine = _engine(encoder, settings, scale)
    history: list[dict[str, float]] = []
    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            if (Path(folder) / CONTRACT).exists():  # it was killed after its last step
                ray.train.report(_history(Path(folder))[-1], checkpoint=checkpoint)
                return
            start = engine.load(Path(folder))["step"]
            history = _history(Path(folder))[:start]
        _say(rank, f"goes on after step {start}")

    def report(figures: dict[str, float]) -> None:
        history.append(figures)
        step, steps = int(figures["step"]), int(figures["steps"])
        if step == 1 or step == steps or step % max(1, steps // 20) == 0:
            _say(
                rank,
                f"step {step}/{steps}  loss {figures['loss']:.4f}  "
                f"lr {figures['learning_rate']:.2e}  "
                f"{figures['tokens_per_second']:,.0f} tokens/s",
            )

    def keep(done: int, *, encoder_too: bool = False) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if encoder_too:
                trained = engine.trained()
                if rank == 0 and task.merges:
                    save(merged(task.encoder(), trained), folder)
                elif rank == 0:
                    save(encoder, folder, state_dict=trained)
            else:
                engine.save(folder, {"step": done})
            if rank == 0:
                lines = "".join(json.dumps(figures) + "\n" for figures in history)
                (folder / METRICS).write_text(lines)
            mine = ray.train.Checkpoint.from_directory(folder) if any(folder.iterdir()) else None
            ray.train.report(history[-1], checkpoint=mine)

    train(
        engine,
        task.objective,
        Ahead(batches, settings.steps),
        steps=settings.steps,
        learning_rate=functools.partial(
            schedule,
            steps=settings.steps,
            warmup=round(settings.warmup * settings.steps),
            peak=settings.learning_rate,
            shape=settings.schedule,
        ),
        seed=task.seed,
        pad_id=encoder.pad_id,
        micro_tokens=scale.micro_tokens,
        gradcache=scale.gradcache,
        start=start,
        report=report,
        checkpoint=keep,
        checkpoint_every=scale.checkpoint_every,
    )
    keep(settings.steps, encoder_too=True)


def _history(folder: Path) -> list[dict[str, float]]:
    with (folder / METRICS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _engine(encoder: Encoder, settings: Optimisation, scale: Workers) -> Engine:
    if scale.engine == "torch":
        return TorchEngine(encoder, weight_decay=settings.weight_decay, clip=settings.clip)
    return DeepSpeedEngine(
        encoder,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        zero_stage=scale.zero_stage,
        batch_per_worker=settings.global_batch // scale.workers,
    )


def _say(rank: int, line: str) -> None:
    """A line in the job's log: what a worker prints, Ray brings to the driver."""
    if rank == 0:
        print(line, flush=True)
