"""Objectives that predict tokens: masked next-token prediction, and joint generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledTokens
from stillroom.learning.batch_types import JointBatch, Metrics, Tensor
from stillroom.learning.gather import current_shard
from stillroom.learning.micro_batch_runner import MicroBatchRunner
from stillroom.learning.objectives.contrastive import Contrastive


def loss_weights(
    texts: Sequence[LabelledTokens], mean_over: Literal["token", "sample"], device: torch.device
) -> Tensor:
    """The factor of each text's summed loss, (n,).

    Args:
        mean_over: "token" makes the loss a mean over all workers' target tokens; "sample" a mean
            over this worker's texts of each text's mean.
    """
    counts = torch.tensor(
        [sum(label != IGNORE_INDEX for label in text.labels) for text in texts],
        dtype=torch.float32,
        device=device,
    )
    if mean_over == "sample":
        return 1 / counts.clamp(min=1) / len(texts)
    total, workers = counts.sum(), current_shard().world
    if workers > 1:
        dist.all_reduce(total)
    # Gradients will be averaged over the workers, which divides by their number: undo it here.
    return torch.full_like(counts, workers / max(1.0, float(total)))


@dataclass(frozen=True)
class Mntp:
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961), a mean over masked tokens."""

    def __call__(
        self, runner: MicroBatchRunner, batch: Sequence[LabelledTokens]
    ) -> tuple[None, Metrics]:
        runner.add_token_loss("mntp", batch, loss_weights(batch, "token", runner.device))
        return None, {}


@dataclass(frozen=True)
class Joint:
    """Contrastive + weight × generation in one step (GritLM, arXiv 2402.09906)."""

    contrastive: Contrastive
    weight: float
    mean_over: Literal["token", "sample"]

    def __call__(self, runner: MicroBatchRunner, batch: JointBatch) -> tuple[Tensor, Metrics]:
        loss, metrics = self.contrastive(runner, batch.pairs)
        weights = self.weight * loss_weights(batch.generation, self.mean_over, runner.device)
        runner.add_token_loss("generation", batch.generation, weights)
        return loss, {**metrics, "contrastive": loss.item()}
