"""The one training loop, for teacher and student alike."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from stillroom.learning.engine import Engine
from stillroom.learning.gather import world
from stillroom.learning.objectives import Encode, Figures, Pairs

Objective = Callable[[Encode, Pairs], tuple[torch.Tensor, Figures]]


class NonFiniteLoss(Exception):
    """Training ran into nan or inf."""

    def __init__(self, step: int, loss: float, ids: list[int]):
        super().__init__(step, loss, ids)

    def __str__(self) -> str:
        step, loss, ids = self.args
        return (
            f"the loss is {loss} at step {step}, on pairs {ids[:16]}"
            f"{' …' if len(ids) > 16 else ''}; lower the learning rate, or look at those pairs"
        )


def linear_decay(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of a step: up to `peak` over `warmup` steps, then down to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def train(
    engine: Engine,
    objective: Objective,
    batches: Any,
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    seed: int,
    start: int = 0,
    report: Callable[[dict[str, float]], None],
    checkpoint: Callable[[int], None],
    checkpoint_every: int,
) -> list[float]:
    """Runs steps `start` … `steps` - 1; returns their losses, averaged over the workers.

    Args:
        batches: step → this worker's batch; `batches.ids(step)` names its pairs.
        report: called on every worker after each step with that step's figures.
        checkpoint: called on every worker with the number of steps done, after every
            `checkpoint_every` steps but not after the last.

    Raises:
        NonFiniteLoss: before the step that would have spoiled the weights.
    """
    rank, workers = world()
    losses = []
    for step in range(start, steps):
        began = time.perf_counter()
        # Dropout depends on the step alone, so a resumed run draws what it would have drawn.
        torch.manual_seed(hash((seed, step, rank)) & 0x7FFFFFFF)
        batch = batches(step)
        loss, figures = objective(engine.encode, batch)
        mean = _mean(loss.detach().float(), workers)
        if not math.isfinite(mean):
            raise NonFiniteLoss(step, mean, [int(i) for i in batches.ids(step)])
        rate = learning_rate(step)
        norm = engine.step(loss, rate)
        losses.append(mean)
        seconds = time.perf_counter() - began
        tokens = int(batch.queries.mask_bl.sum() + batch.passages.mask_bl.sum())
        report(
            {
                "step": step + 1,
                "steps": steps,
                "loss": mean,
                "learning_rate": rate,
                "gradient_norm": norm,
                "tokens_per_second": tokens * workers / seconds,
                **figures,
            }
        )
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            checkpoint(step + 1)
    return losses


def _mean(value: torch.Tensor, workers: int) -> float:
    if workers > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return float(value) / workers
