"""The function that each worker of a training run executes."""

import functools
import logging
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.collective import barrier, broadcast_from_rank_zero

from stillroom.config.phases import TrainingPhase
from stillroom.config.scale import Tracking, TrainingWorkers
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.layers import backbone
from stillroom.encoders.layers.packing import pack_attention, packing_is_faster
from stillroom.estimates.flops import FlopCounter, peak_flops
from stillroom.estimates.model_shape import model_shape
from stillroom.learning.engine.deepspeed_engine import DeepSpeedEngine
from stillroom.learning.engine.interface import Engine
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.gather import current_shard
from stillroom.learning.loop import Callbacks, TrainOptions, scheduled_learning_rate, train
from stillroom.learning.prefetch import Prefetcher
from stillroom.observability.log_context import LogContext, configure_worker_logging, current_fields
from stillroom.observability.run_journal import record_event
from stillroom.training.checkpoints import Checkpoints, CheckpointSaver
from stillroom.training.evaluation import Evaluator
from stillroom.training.graceful_stop import StopWatcher
from stillroom.training.metric_sinks import RayGauges, Sink, Tracker, open_sinks
from stillroom.training.run_output import RunOutput
from stillroom.training.task import TrainingTask
from stillroom.training.worker_group import usable_workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSetup:
    """Arguments that the driver passes to its workers, by pickle.

    Attributes:
        logs: the folder, or URI, of TensorBoard's files; its last part is the run's name.
    """

    task: TrainingTask
    scale: TrainingWorkers
    tracking: Tracking
    checkpoints: Checkpoints
    logs: str
    log_context: LogContext


def train_worker(setup: WorkerSetup, stop_request: Any) -> None:
    """Trains as one of the workers, from the newest checkpoint if there is one.

    Args:
        stop_request: the actor that the workers poll for requests to stop.
    """
    task, scale, checkpoints = setup.task, setup.scale, setup.checkpoints
    context = ray.train.get_context()
    configure_worker_logging(setup.log_context, rank=context.get_world_rank())
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats our figures
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which of its builds it loads
    newest, attempt = _choose_checkpoint(checkpoints)
    if context.get_world_rank() >= usable_workers(
        context.get_world_size(), task.shared_batch_sizes
    ):
        barrier()
        StopWatcher(stop_request).wait_until_done()
        return
    shard = current_shard()
    encoder = _encoder_to_train(task, scale)
    batches = Prefetcher(task.make_batches(encoder, shard), task.phase.steps)
    flops = _flops(encoder)  # before ZeRO-3 partitions the weights
    engine = _engine(encoder, task.phase, scale)
    evaluate = None
    if task.evaluate_every is not None:
        evaluate = Evaluator(
            encoder, engine, task.evaluation_sets(), micro_batch_tokens=scale.micro_batch_tokens
        )
    saver = CheckpointSaver(
        checkpoints, attempt, shard.rank, shard.world, keep=scale.keep_checkpoints
    )
    with tempfile.TemporaryDirectory() as scratch:
        output = RunOutput(task, encoder, engine, shard.rank, saver, Path(scratch))
        if newest is not None:
            output.resume(checkpoints.fetch(newest))
        barrier()
        stop_watcher = StopWatcher(stop_request)
        if newest is not None:
            checkpoints.drop_copy(newest)
        with Tracker(_sinks(setup, output)) as output.tracker:
            train(
                engine,
                task.objective,
                batches,
                _options(task, scale, encoder, flops, engine.device),
                _callbacks(output, evaluate, stop_watcher),
                start_step=output.start_step,
                best_score=output.best_score,
            )
            if output.steps_done == task.phase.steps:
                output.save_encoder()
            elif shard.rank == 0:
                log.info("stops after step %d; the run can be resumed", output.steps_done)
            saver.wait()
    if shard.rank == 0:
        stop_watcher.mark_done()


def _choose_checkpoint(checkpoints: Checkpoints) -> tuple[str | None, str]:
    """The checkpoint to resume from, if any, and a name for this attempt; equal on all workers.

    One worker chooses: an earlier attempt's checkpoint may become complete while others look.
    """
    choice = None
    if ray.train.get_context().get_world_rank() == 0:
        choice = (checkpoints.newest(), uuid.uuid4().hex[:8])
    newest, attempt = broadcast_from_rank_zero(choice)
    return newest, attempt


def _encoder_to_train(task: TrainingTask, scale: TrainingWorkers) -> Encoder:
    """The encoder on this worker's device, in training mode."""
    torch.manual_seed(task.seed)
    encoder = task.make_encoder().to(ray.train.torch.get_device())
    if scale.gradient_checkpointing:
        backbone.checkpoint_activations(encoder.backbone)
    if trains_packed(encoder, scale):
        pack_attention(encoder.backbone)
    return encoder.train()


def trains_packed(encoder: Encoder, scale: TrainingWorkers) -> bool:
    """Whether an encoder is trained without padding."""
    return packing_is_faster(encoder.backbone) if scale.packed is None else scale.packed


def _flops(encoder: Encoder) -> FlopCounter | None:
    """FLOPs of texts in the backbone; None for an architecture of unknown sizes."""
    shape = model_shape(encoder.backbone.config.to_dict())
    trained = [(n, p) for n, p in encoder.backbone.named_parameters() if p.requires_grad]
    adapters = sum(p.numel() for name, p in trained if ".lora_" in name)
    return None if shape is None else FlopCounter.of(shape, adapters or None)


def _engine(encoder: Encoder, phase: TrainingPhase, scale: TrainingWorkers) -> Engine:
    if scale.engine == "torch":
        return TorchEngine(
            encoder, weight_decay=phase.weight_decay, max_grad_norm=phase.max_grad_norm
        )
    return DeepSpeedEngine(
        encoder,
        weight_decay=phase.weight_decay,
        max_grad_norm=phase.max_grad_norm,
        zero_stage=scale.zero_stage,
        batch_per_worker=phase.global_batch // current_shard().world,
        offload=scale.offload,
    )


def _options(
    task: TrainingTask,
    scale: TrainingWorkers,
    encoder: Encoder,
    flops: FlopCounter | None,
    device: torch.device,
) -> TrainOptions:
    phase = task.phase
    device_flops = scale.peak_flops
    if device_flops is None and device.type == "cuda":
        device_flops = peak_flops(torch.cuda.get_device_name(device))
    return TrainOptions(
        steps=phase.steps,
        learning_rate=functools.partial(
            scheduled_learning_rate,
            steps=phase.steps,
            warmup=round(phase.warmup_ratio * phase.steps),
            peak=phase.learning_rate,
            shape=phase.schedule,
        ),
        seed=task.seed,
        pad_id=encoder.pad_id,
        micro_batch_tokens=scale.micro_batch_tokens,
        gradcache=scale.gradcache,
        packed=encoder.packed,
        checkpoint_every=scale.checkpoint_every,
        evaluate_every=task.evaluate_every,
        flops=flops,
        device_flops=device_flops,
    )


def _callbacks(
    output: RunOutput, evaluate: Callable[[], float] | None, stop_watcher: StopWatcher
) -> Callbacks:
    return Callbacks(
        on_step=output.report_step,
        on_start_score=output.report_start,
        save_checkpoint=output.save_checkpoint,
        evaluate=evaluate,
        on_best_score=output.keep_best,
        stop_requested=stop_watcher,
    )


def _sinks(setup: WorkerSetup, output: RunOutput) -> list[Sink]:
    """Where metrics go: on the first worker, which also records that training starts."""
    if output.rank != 0:
        return []
    start_step, workers = output.start_step, current_shard().world
    if start_step:
        others = f", on {workers} workers" if workers > 1 else ""
        log.info("resumes after step %d%s", start_step, others)
    record_event(
        setup.checkpoints.store,
        "training begins",
        ref=current_fields().get("stage"),
        after=start_step,
        workers=workers,
    )
    name = Path(setup.logs).name
    gauges = RayGauges(name, setup.task.phase.steps, start_step)
    return [gauges, *open_sinks(setup.tracking, name, setup.logs, start_step)]
