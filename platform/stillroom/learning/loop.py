"""The one training loop, for teacher and student alike."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from stillroom.estimates.flops import Flops
from stillroom.learning.engine.base import Engine
from stillroom.learning.forwards import Forwards
from stillroom.learning.gather import world
from stillroom.learning.objectives.contrastive import Objective

SCORE = "ndcg@10"  # the figure that `evaluate` gives a step


class NonFiniteLoss(Exception):
    """Training ran into nan or inf."""

    def __init__(self, step: int, loss: float, ids: list[int], kept: int):
        super().__init__(step, loss, ids, kept)

    def __str__(self) -> str:
        step, loss, ids, kept = self.args
        good = f"the checkpoint of step {kept} is good" if kept else "there is no checkpoint yet"
        return (
            f"the loss is {loss} at step {step}, on rows {ids[:16]}"
            f"{' …' if len(ids) > 16 else ''} of the training data; {good}. "
            "Lower the learning rate, or look at those rows"
        )


def schedule(step: int, *, steps: int, warmup: int, peak: float, shape: str = "linear") -> float:
    """Learning rate of a step: up to `peak` over `warmup` steps, then down to 0 at `steps`.

    Args:
        shape: of the way down: linear, cosine, or constant, which stays at the peak.
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


def train(
    engine: Engine,
    objective: Objective,
    batches: Any,
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    seed: int,
    pad_id: int,
    micro_tokens: int,
    gradcache: bool = False,
    packed: bool = False,
    start: int = 0,
    report: Callable[[dict[str, float]], None],
    checkpoint: Callable[[int], None],
    checkpoint_every: int,
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int | None = None,
    improved: Callable[[], None] = lambda: None,
    best: float = -math.inf,
    flops: Flops | None = None,
    peak: float | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Runs steps `start` … `steps` - 1; returns their losses, averaged over the workers.

    Told to stop, it makes a checkpoint after the step that it is in, and returns early.

    Args:
        batches: step → this worker's batch; `batches.ids(step)` names its rows.
        micro_tokens, gradcache: see `Forwards`. They change memory and time, not the result.
        packed: forwards leave out the padding of the batches that they are given.
        report: called on every worker after each step with that step's figures.
        checkpoint: called on every worker with the number of steps done, after every
            `checkpoint_every` steps and when it is told to stop, but not after the last.
        evaluate: called on every worker after every `evaluate_every` steps and after the last;
            the score, the same on each, is reported with the step.
        improved: called on every worker when that score is the best, before a checkpoint.
        best: the score to beat, of the steps before `start`.
        flops, peak: what texts cost the model, and the FLOP/s of a worker's device: where both are
            known, a step's figures hold its MFU.
        told_to_stop: asked in every step on every worker; one that is told stops all.

    Raises:
        NonFiniteLoss: before the update that would have spoiled the weights.
    """
    rank, workers = world()
    losses = []
    for step in range(start, steps):
        began = time.perf_counter()
        batch = batches(step)
        waited = time.perf_counter() - began
        forwards = Forwards(
            engine,
            pad_id=pad_id,
            micro_tokens=micro_tokens,
            cached=gradcache,
            # Dropout depends on the step alone, so a resumed run draws what it would have drawn.
            seed=hash((seed, step, rank)),
        )
        loss, figures = objective(forwards, batch)
        value = torch.zeros(()) if loss is None else loss.detach().float().cpu()
        predicted = forwards.backward(loss)
        value = value + sum(part.cpu() for part in predicted.values())
        cost = 0.0
        if flops is not None:
            cost = flops.forward(forwards.lengths) + flops.backward(forwards.lengths)
        mean, tokens, padded, cost, told = _over_workers(
            [float(value), forwards.tokens, forwards.padded, cost, told_to_stop()], engine.device
        )
        mean /= workers
        if not math.isfinite(mean):
            kept = step // checkpoint_every * checkpoint_every
            raise NonFiniteLoss(step, mean, [int(i) for i in batches.ids(step)], kept)
        rate = learning_rate(step)
        norm = engine.step(rate)
        losses.append(mean)
        seconds = time.perf_counter() - began
        done = step + 1
        figures = {
            "step": done,
            "steps": steps,
            "loss": mean,
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": seconds,
            "waited_for_data": waited,
            "tokens_per_second": tokens / seconds,
            "padding": 0.0 if packed else 1 - tokens / padded,
            "memory_gib": _memory_gib(engine.device),
            **figures,
            **{name: float(part) for name, part in predicted.items()},
        }
        if cost and peak is not None:
            figures["mfu"] = cost / seconds / (workers * peak)
        if evaluate is not None and (done == steps or done % (evaluate_every or steps) == 0):
            figures[SCORE] = evaluate()
        report(figures)
        if figures.get(SCORE, -math.inf) > best:
            best = figures[SCORE]
            improved()
        if done < steps and (told or done % checkpoint_every == 0):
            checkpoint(done)
        if told:
            break
    return losses


def _over_workers(values: list[float], device: torch.device) -> list[float]:
    """Sums over the workers."""
    if world()[1] == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def _memory_gib(device: torch.device) -> float:
    """This worker's peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
