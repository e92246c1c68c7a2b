"""Ray Train around the one loop: teacher and student differ by a `Task`."""

import functools
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file, save_file

from stillroom.artifacts import Draft, Store
from stillroom.config.models import Optimisation
from stillroom.config.scale import Tracking, Workers
from stillroom.encoders import backbone
from stillroom.encoders.contract import FILE as CONTRACT
from stillroom.encoders.encode import Encoder
from stillroom.encoders.packing import pack_attention
from stillroom.encoders.store import merged, save
from stillroom.errors import UserError
from stillroom.journal import note
from stillroom.learning.batches import Ahead
from stillroom.learning.engine import DeepSpeedEngine, Engine, TorchEngine
from stillroom.learning.flops import Flops, peak_flops
from stillroom.learning.loop import SCORE, schedule, train
from stillroom.learning.objectives import Objective
from stillroom.learning.shape import shape_of
from stillroom.logs import Said, begin, said, told
from stillroom.stages.evaluation import Evaluation
from stillroom.stages.room import require
from stillroom.stages.tracking import RayGauges, Sink, Tracker, check, progress, sinks
from stillroom.text.formats import EvaluationSet

METRICS = "metrics.jsonl"  # one line a step
BEST = "best.safetensors"  # in a checkpoint: the weights of the best score so far

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is trained, on what, towards what. Travels to the workers by pickle.

    Attributes:
        encoder, batches: functions, so that each worker reads its own copy from storage; the
            latter is given the encoder, and the worker's rank and world.
        merges: the result is saved whole, for its adapter lies on weights that no base holds.
        evaluate_every: steps after which nDCG@10 on `sets` is measured, and after the last; the
            best weights are then kept. None: never, and the last are.
        prepare: called with the encoder, where it will be trained, before the first step of all.
    """

    encoder: Callable[[], Encoder]
    batches: Callable[[Encoder, dict[str, int]], Any]
    objective: Objective
    settings: Optimisation
    seed: int
    merges: bool = False
    sets: Callable[[], Mapping[str, EvaluationSet]] = dict
    evaluate_every: int | None = None
    prepare: Callable[[Encoder], None] | None = None


def fit(task: Task, scale: Workers, tracking: Tracking, out: Draft) -> dict[str, float]:
    """Trains under Ray Train and leaves the encoder, and metrics.jsonl, in the draft.

    A worker that dies is replaced, and the run goes on from the newest checkpoint; a run whose
    driver died goes on from there when the same step is run again, on any number of workers.

    Returns:
        The figures of the step whose weights are kept.

    Raises:
        UserError: when the figures cannot be tracked as asked, or no cluster node will ever have
            what the workers ask for.
    """
    check(tracking)
    require(out.stage, scale, scale.workers)
    storage = out.store.place(".train")
    name = f"{out.stage}-{out.path.name}"
    logs = out.store.place(f".logs/{name}")
    if tracking.tensorboard:
        log.info("%s: to watch it, run `tensorboard --logdir %s`", name, out.store.place(".logs"))
    trainer = TorchTrainer(
        functools.partial(_work, task, scale, tracking, name, logs, said(), out.store.place("")),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpus > 0,
            resources_per_worker={
                "CPU": scale.cpus,
                **({"GPU": scale.gpus} if scale.gpus else {}),
            },
            label_selector=scale.node_labels or None,
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
    threads = max(1, int(scale.cpus))
    found = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),  # the tokenizers'
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",  # what libraries tell one another
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would print every line of ours twice
    }
    if not scale.gpus:
        # Without it DeepSpeed looks for the machine's GPUs, which these workers were not given.
        found["DS_ACCELERATOR"] = "cpu"
    return found


def _work(
    task: Task, scale: Workers, tracking: Tracking, name: str, logs: str, by: Said, root: str
) -> None:
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats our figures
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    begin(by, rank=rank)
    checkpoint = ray.train.get_checkpoint()
    torch.manual_seed(task.seed)
    encoder = task.encoder().to(ray.train.torch.get_device())
    if scale.gradient_checkpointing:
        backbone.checkpoint_activations(encoder.backbone)
    if scale.packed:
        pack_attention(encoder.backbone)
    encoder.train()
    if task.prepare is not None and checkpoint is None:
        task.prepare(encoder)
    settings = task.settings
    batches = task.batches(encoder, {"rank": rank, "world": world})
    flops = _flops(encoder)  # before ZeRO-3 takes the weights apart
    engine = _engine(encoder, settings, scale)
    evaluate = None
    if task.evaluate_every is not None:
        evaluate = Evaluation(encoder, engine, task.sets(), micro_tokens=scale.micro_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        run = _Run(task, encoder, engine, rank, Path(scratch))
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                if (Path(folder) / CONTRACT).exists():  # it was killed after its last step
                    ray.train.report(_kept(_history(Path(folder))), checkpoint=checkpoint)
                    return
                run.load(Path(folder))
            _say(rank, f"goes on after step {run.start}")
        if rank == 0:
            ref = told().get("stage")
            note(Store(root), "training begins", ref=ref, after=run.start, workers=world)
        shown: list[Sink] = []
        if rank == 0:
            gauges = RayGauges(name, settings.steps, run.start)
            shown = [gauges, *sinks(tracking, name, logs, run.start)]
        with Tracker(shown) as tracker:
            run.tracker = tracker
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
                start=run.start,
                report=run.report,
                checkpoint=run.checkpoint,
                checkpoint_every=scale.checkpoint_every,
                evaluate=evaluate,
                evaluate_every=task.evaluate_every,
                improved=run.improved,
                best=_kept(run.history).get(SCORE, -math.inf),
                flops=flops,
                peak=scale.peak_flops or _peak_flops(engine.device),
            )
            run.finish()


@dataclass
class _Run:
    """One worker's part in what a run leaves: figures, checkpoints, the encoder."""

    task: Task
    encoder: Encoder
    engine: Engine
    rank: int
    scratch: Path
    tracker: Tracker = field(default_factory=lambda: Tracker([]))
    history: list[dict[str, float]] = field(default_factory=list)  # a step each
    start: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def best(self) -> Path:
        """The first worker's copy of the best weights so far, where there is evaluation."""
        return self.scratch / BEST

    def load(self, folder: Path) -> None:
        self.start = self.engine.load(folder)
        self.history = _history(folder)[: self.start]
        if self.rank == 0 and (folder / BEST).exists():
            shutil.copy2(folder / BEST, self.best)

    def report(self, figures: dict[str, float]) -> None:
        self.history.append(figures)
        self.tracker(figures)
        step, steps = int(figures["step"]), int(figures["steps"])
        if step in (1, steps) or step % math.ceil(steps / 20) == 0 or SCORE in figures:
            each = (time.monotonic() - self.began) / (step - self.start)
            _say(self.rank, progress(figures, each * (steps - step)))

    def improved(self) -> None:
        weights = self.engine.trained()
        if self.rank == 0:
            save_file({n: tensor.contiguous() for n, tensor in weights.items()}, self.best)

    def checkpoint(self, done: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            self.engine.save(Path(name), done)
            if self.best.exists():
                shutil.copy2(self.best, name)
            self._hand_in(Path(name), self.history[-1])

    def finish(self) -> None:
        """The last checkpoint is the encoder itself."""
        kept = _kept(self.history)
        evaluated = SCORE in kept
        weights = {} if evaluated else self.engine.trained()
        with tempfile.TemporaryDirectory() as name:
            if self.rank == 0:
                if evaluated:
                    weights = load_file(self.best)
                    _say(0, f"keeps the weights of step {kept['step']}: {SCORE} {kept[SCORE]:.4f}")
                if self.task.merges:
                    save(merged(self.task.encoder(), weights), name)
                else:
                    save(self.encoder, name, state_dict=weights)
            self._hand_in(Path(name), kept)

    def _hand_in(self, folder: Path, figures: dict[str, float]) -> None:
        if self.rank == 0:
            lines = "".join(json.dumps(figures) + "\n" for figures in self.history)
            (folder / METRICS).write_text(lines)
            self.tracker.flush()
        mine = ray.train.Checkpoint.from_directory(folder) if any(folder.iterdir()) else None
        ray.train.report(figures, checkpoint=mine)


def _history(folder: Path) -> list[dict[str, float]]:
    with (folder / METRICS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _kept(history: list[dict[str, float]]) -> dict[str, float]:
    """The step whose weights are kept: the first of the best scores, else the last; {} of none."""
    scored = [figures for figures in history if SCORE in figures]
    return max(scored, key=lambda figures: figures[SCORE]) if scored else (history or [{}])[-1]


def _engine(encoder: Encoder, settings: Optimisation, scale: Workers) -> Engine:
    if scale.engine == "torch":
        return TorchEngine(encoder, weight_decay=settings.weight_decay, clip=settings.clip)
    return DeepSpeedEngine(
        encoder,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        zero_stage=scale.zero_stage,
        batch_per_worker=settings.global_batch // scale.workers,
        offload=scale.offload,
    )


def _flops(encoder: Encoder) -> Flops | None:
    """What texts cost the backbone; None of an architecture whose sizes are not known."""
    shape = shape_of(encoder.backbone.config.to_dict())
    trained = [(n, p) for n, p in encoder.backbone.named_parameters() if p.requires_grad]
    adapters = sum(p.numel() for name, p in trained if ".lora_" in name)
    return None if shape is None else Flops.of(shape, adapters or None)


def _peak_flops(device: torch.device) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _say(rank: int, line: str) -> None:
    """A line in the job's log, of all workers once."""
    if rank == 0:
        log.info(line)
