"""The training loop for both teacher and student.

A caller gives the engine that updates the weights, the objective, the batches, and callbacks for
everything that leaves the loop: metrics, checkpoints, evaluation.
"""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stillroom.estimates.flops import FlopCounter
from stillroom.learning.batch_types import Batches, Metrics
from stillroom.learning.engine.interface import Engine
from stillroom.learning.gather import current_shard
from stillroom.learning.micro_batch_runner import MicroBatchRunner
from stillroom.learning.objectives.interface import Objective

SCORE_METRIC = "ndcg@10"  # the metric that `Callbacks.evaluate` adds to a step


class NonFiniteLoss(Exception):
    """The loss became nan or inf."""

    def __init__(self, step: int, loss: float, ids: list[int], last_checkpoint: int):
        """
        Args:
            ids: the rows of training data in the step's batch.
            last_checkpoint: the step of the newest checkpoint; 0 when there is none.
        """
        super().__init__(step, loss, ids, last_checkpoint)

    def __str__(self) -> str:
        step, loss, ids, last_checkpoint = self.args
        state = (
            f"the checkpoint of step {last_checkpoint} is good"
            if last_checkpoint
            else "there is no checkpoint yet"
        )
        return (
            f"the loss is {loss} at step {step}, on rows {ids[:16]}"
            f"{' …' if len(ids) > 16 else ''} of the training data; {state}. "
            "Lower the learning rate, or look at those rows"
        )


def scheduled_learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, shape: str = "linear"
) -> float:
    """Learning rate of a step: up to `peak` over `warmup` steps, then down to 0 at `steps`.

    Args:
        shape: of the decay: linear, cosine, or constant, which stays at the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    shapes = {
        "linear": left,
        "cosine": (1 - math.cos(math.pi * left)) / 2,
        "constant": 1.0,
    }
    return peak * shapes[shape]


@dataclass(frozen=True)
class TrainOptions:
    """The numbers of a training run.

    Attributes:
        learning_rate: step → learning rate.
        pad_id: the token that fills short texts of a micro-batch.
        micro_batch_tokens, gradcache: see `MicroBatchRunner`. They change memory and time, not the
            result.
        packed: forwards drop the padding of their batches.
        checkpoint_every: steps between checkpoints; None: only when training is asked to stop.
        evaluate_every: steps between evaluations; None: only after the last step.
        flops: FLOPs of texts in the model.
        device_flops: peak FLOP/s of one worker's device. The MFU is reported if this and `flops`
            are known.
    """

    steps: int
    learning_rate: Callable[[int], float]
    seed: int
    pad_id: int
    micro_batch_tokens: int
    gradcache: bool = False
    packed: bool = False
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    flops: FlopCounter | None = None
    device_flops: float | None = None


@dataclass(frozen=True)
class Callbacks:
    """Functions that the loop calls, each on every worker.

    Attributes:
        on_step: called after each step, with its metrics.
        save_checkpoint: called with the number of steps done, after every `checkpoint_every` steps
            and when training is asked to stop, but not after the last step.
        evaluate: returns the score, the same on every worker; called before the first step, after
            every `evaluate_every` steps and after the last. None: no evaluation.
        on_start_score: called with the metrics of step 0, the score before the first step.
        on_best_score: called after a step whose score is the best so far, before its checkpoint;
            step 0 is the first of them.
        stop_requested: called in every step; if it is true on one worker, all stop.
    """

    on_step: Callable[[Metrics], None] = lambda metrics: None
    save_checkpoint: Callable[[int], None] = lambda steps_done: None
    evaluate: Callable[[], float] | None = None
    on_start_score: Callable[[Metrics], None] = lambda metrics: None
    on_best_score: Callable[[], None] = lambda: None
    stop_requested: Callable[[], bool] = lambda: False


def train(
    engine: Engine,
    objective: Objective,
    batches: Batches,
    options: TrainOptions,
    callbacks: Callbacks = Callbacks(),
    *,
    start_step: int = 0,
    best_score: float = -math.inf,
) -> list[float]:
    """Runs steps `start_step` … `options.steps` - 1; returns their losses, averaged over workers.

    When asked to stop, it saves a checkpoint after the current step and returns early.

    Args:
        start_step: the number of steps that an earlier run has done.
        best_score: the best score of those steps and of step 0, which a new best must beat.

    Raises:
        NonFiniteLoss: before the update that would have made the weights invalid.
    """
    losses = []
    if start_step == 0 and callbacks.evaluate is not None:
        best_score = callbacks.evaluate()
        callbacks.on_start_score({"step": 0, "steps": options.steps, SCORE_METRIC: best_score})
        callbacks.on_best_score()
    for step in range(start_step, options.steps):
        timer = _StepTimer()
        batch = batches(step)
        timer.data_arrived()
        runner = _runner(engine, options, step)
        totals, metrics = _forward_and_backward(runner, objective, batch, options, callbacks)
        if not math.isfinite(totals.mean_loss):
            ids = [int(row) for row in batches.ids(step)]
            raise NonFiniteLoss(step, totals.mean_loss, ids, _last_checkpoint(step, options))
        learning_rate = options.learning_rate(step)
        gradient_norm = engine.step(learning_rate)
        losses.append(totals.mean_loss)
        steps_done = step + 1
        metrics = {
            "step": steps_done,
            "steps": options.steps,
            "loss": totals.mean_loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            **_speed_metrics(totals, timer, options),
            "memory_gib": _peak_memory_gib(engine.device),
            **metrics,
        }
        if callbacks.evaluate is not None and _evaluation_due(steps_done, options):
            metrics[SCORE_METRIC] = callbacks.evaluate()
        callbacks.on_step(metrics)
        if metrics.get(SCORE_METRIC, -math.inf) > best_score:
            best_score = metrics[SCORE_METRIC]
            callbacks.on_best_score()
        if _checkpoint_due(steps_done, totals.stop_requested, options):
            callbacks.save_checkpoint(steps_done)
        if totals.stop_requested:
            break
    return losses


@dataclass(frozen=True)
class _StepTotals:
    """Totals of a step over all workers.

    Attributes:
        mean_loss: over the workers.
        tokens, padded_tokens: of all workers, without and with padding.
        flops: of all workers; 0 if the cost of a text is unknown.
        stop_requested: on at least one worker.
    """

    mean_loss: float
    tokens: float
    padded_tokens: float
    flops: float
    stop_requested: bool


def _runner(engine: Engine, options: TrainOptions, step: int) -> MicroBatchRunner:
    return MicroBatchRunner(
        engine,
        pad_id=options.pad_id,
        micro_batch_tokens=options.micro_batch_tokens,
        cached=options.gradcache,
        # Dropout depends on the step alone, so a resumed run has the same dropout.
        seed=hash((options.seed, step, current_shard().rank)),
    )


def _forward_and_backward(
    runner: MicroBatchRunner,
    objective: Objective,
    batch: object,
    options: TrainOptions,
    callbacks: Callbacks,
) -> tuple[_StepTotals, Metrics]:
    """Leaves the step's gradients with the engine; returns totals, and this worker's metrics."""
    loss, metrics = objective(runner, batch)
    local_loss = torch.zeros(()) if loss is None else loss.detach().float().cpu()
    predicted = runner.backward(loss)
    local_loss = local_loss + sum(part.cpu() for part in predicted.values())
    flops = 0.0
    if options.flops is not None:
        flops = options.flops.forward(runner.lengths) + options.flops.backward(runner.lengths)
    loss_sum, tokens, padded_tokens, flops, stops = _sum_over_workers(
        [float(local_loss), runner.tokens, runner.padded_tokens, flops, callbacks.stop_requested()],
        runner.device,
    )
    mean_loss = loss_sum / current_shard().world
    totals = _StepTotals(mean_loss, tokens, padded_tokens, flops, stops > 0)
    return totals, {**metrics, **{name: float(part) for name, part in predicted.items()}}


def _sum_over_workers(values: list[float], device: torch.device) -> list[float]:
    if current_shard().world == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


class _StepTimer:
    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.data_wait_s = 0.0

    def data_arrived(self) -> None:
        self.data_wait_s = time.perf_counter() - self.started

    def seconds(self) -> float:
        return time.perf_counter() - self.started


def _speed_metrics(totals: _StepTotals, timer: _StepTimer, options: TrainOptions) -> Metrics:
    seconds = timer.seconds()
    metrics = {
        "step_seconds": seconds,
        "data_wait_seconds": timer.data_wait_s,
        "tokens_per_second": totals.tokens / seconds,
        "padding": 0.0 if options.packed else 1 - totals.tokens / totals.padded_tokens,
    }
    if totals.flops and options.device_flops is not None:
        peak = current_shard().world * options.device_flops
        metrics["mfu"] = totals.flops / seconds / peak
    return metrics


def _evaluation_due(steps_done: int, options: TrainOptions) -> bool:
    every = options.evaluate_every or options.steps
    return steps_done == options.steps or steps_done % every == 0


def _checkpoint_due(steps_done: int, stop_requested: bool, options: TrainOptions) -> bool:
    if steps_done == options.steps:
        return False
    every = options.checkpoint_every
    return stop_requested or (every is not None and steps_done % every == 0)


def _last_checkpoint(step: int, options: TrainOptions) -> int:
    every = options.checkpoint_every
    return 0 if every is None else step // every * every


def _peak_memory_gib(device: torch.device) -> float:
    """The peak memory of this worker so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
