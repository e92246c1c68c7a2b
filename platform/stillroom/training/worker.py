"""TODO docstring: training/worker.py."""

import functools
import json
import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.collective import barrier, broadcast_from_rank_zero
from safetensors.torch import load_file, save_file

from stillroom.config.phases import Joint, Optimisation
from stillroom.config.scale import Tracking, Workers
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.save import merged, save
from stillroom.encoders.layers import backbone
from stillroom.encoders.layers.packing import pack_attention, packing_pays
from stillroom.estimates.flops import Flops, peak_flops
from stillroom.estimates.model_shape import shape_of
from stillroom.learning.engine.base import Engine
from stillroom.learning.engine.deepspeed_engine import DeepSpeedEngine
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.gather import world
from stillroom.learning.loop import SCORE, schedule, train
from stillroom.learning.prefetch import Ahead
from stillroom.observability.log_context import Said, begin, told
from stillroom.observability.run_journal import note
from stillroom.storage.artifacts import Store
from stillroom.training.checkpoints import Checkpoints, Saver
from stillroom.training.evaluation import Evaluation
from stillroom.training.graceful_stop import Notices
from stillroom.training.metric_sinks import RayGauges, Sink, Tracker, progress, sinks
from stillroom.training.task import BEST, METRICS, Task
from stillroom.training.worker_group import taking

log = logging.getLogger(__name__)


def _shared(settings: Optimisation) -> tuple[int, ...]:
    """Sizes of the batches that workers share."""
    also = (settings.generation_batch,) if isinstance(settings, Joint) else ()
    return (settings.global_batch, *also)


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
        # A step's tensors lie where the last one's did. By default malloc gives large ones back,
        # and each page that it asks for anew is a fault: a tenth of a student's step.
        found |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    return found


def _work(
    task: Task,
    scale: Workers,
    tracking: Tracking,
    checkpoints: Checkpoints,
    logs: str,
    by: Said,
    root: str,
    request: Any,
) -> None:
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats our figures
    context = ray.train.get_context()
    begin(by, rank=context.get_world_rank())
    # One worker chooses: what a try before left may become whole while others still look.
    first = context.get_world_rank() == 0
    mine = (checkpoints.newest(), uuid.uuid4().hex[:8]) if first else None
    newest, attempt = broadcast_from_rank_zero(mine)
    if context.get_world_rank() >= taking(context.get_world_size(), _shared(task.settings)):
        barrier()
        Notices(request).wait()
        return
    rank, workers = world()
    torch.manual_seed(task.seed)
    encoder = task.encoder().to(ray.train.torch.get_device())
    if scale.gradient_checkpointing:
        backbone.checkpoint_activations(encoder.backbone)
    if packs(encoder, scale):
        pack_attention(encoder.backbone)
    encoder.train()
    if task.prepare is not None and newest is None:
        task.prepare(encoder)
    settings = task.settings
    batches = task.batches(encoder, {"rank": rank, "world": workers})
    flops = _flops(encoder)  # before ZeRO-3 takes the weights apart
    engine = _engine(encoder, settings, scale)
    evaluate = None
    if task.evaluate_every is not None:
        evaluate = Evaluation(encoder, engine, task.sets(), micro_tokens=scale.micro_tokens)
    saver = Saver(checkpoints, attempt, rank, workers, keep=scale.keep_checkpoints)
    with tempfile.TemporaryDirectory() as scratch:
        run = _Run(task, encoder, engine, rank, saver, Path(scratch))
        if newest is not None:
            run.load(checkpoints.opened(newest))
        barrier()
        notices = Notices(request)
        if newest is not None:
            checkpoints.closed(newest)
            others = f", on {workers} workers" if workers > 1 else ""
            _say(rank, f"goes on after step {run.start}{others}")
        shown: list[Sink] = []
        if rank == 0:
            ref = told().get("stage")
            note(Store(root), "training begins", ref=ref, after=run.start, workers=workers)
            name = Path(logs).name
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
                packed=encoder.packed,
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
                told_to_stop=notices,
            )
            if len(run.history) == settings.steps:
                run.finish()
            else:
                _say(rank, f"stops after step {len(run.history)}, and can be gone on from")
            saver.wait()
    if rank == 0:
        notices.done()


@dataclass
class _Run:
    """One worker's part in what a run leaves: figures, checkpoints, the encoder."""

    task: Task
    encoder: Encoder
    engine: Engine
    rank: int
    saver: Saver
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
        def write(folder: Path) -> None:
            self.engine.save(folder, done)
            if self.best.exists():
                shutil.copy2(self.best, folder)

        self._hand_in(done, write)

    def finish(self) -> None:
        """The last checkpoint is the encoder itself."""
        kept = _kept(self.history)
        evaluated = SCORE in kept
        weights = {} if evaluated else self.engine.trained()

        def write(folder: Path) -> None:
            if self.rank != 0:
                return
            own = weights
            if evaluated:
                own = load_file(self.best)
                _say(0, f"keeps the weights of step {kept['step']}: {SCORE} {kept[SCORE]:.4f}")
            if self.task.merges:
                save(merged(self.task.encoder(), own), folder)
            else:
                save(self.encoder, folder, state_dict=own)

        self._hand_in(len(self.history), write)

    def _hand_in(self, done: int, write: Callable[[Path], None]) -> None:
        def all_of_it(folder: Path) -> None:
            write(folder)
            if self.rank == 0:
                lines = "".join(json.dumps(figures) + "\n" for figures in self.history)
                (folder / METRICS).write_text(lines)
                self.tracker.flush()

        self.saver.save(done, all_of_it)


def _history(folder: Path) -> list[dict[str, float]]:
    with (folder / METRICS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _kept(history: list[dict[str, float]]) -> dict[str, float]:
    """The step whose weights are kept: the first of the best scores, else the last; {} of none."""
    scored = [figures for figures in history if SCORE in figures]
    return max(scored, key=lambda figures: figures[SCORE]) if scored else (history or [{}])[-1]


def packs(encoder: Encoder, scale: Workers) -> bool:
    """Whether an encoder is trained without padding."""
    return packing_pays(encoder.backbone) if scale.packed is None else scale.packed


def _engine(encoder: Encoder, settings: Optimisation, scale: Workers) -> Engine:
    if scale.engine == "torch":
        return TorchEngine(encoder, weight_decay=settings.weight_decay, clip=settings.clip)
    return DeepSpeedEngine(
        encoder,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        zero_stage=scale.zero_stage,
        batch_per_worker=settings.global_batch // world()[1],
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
