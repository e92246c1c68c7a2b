"""TODO docstring: learning/objectives/token_prediction.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from stillroom.encoders.tokens.prompter import NO_TARGET, Cloze
from stillroom.learning.batch_types import Figures, PairsAndClozes, Tensor
from stillroom.learning.forwards import Forwards
from stillroom.learning.gather import world
from stillroom.learning.objectives.contrastive import Contrastive


def token_weights(
    clozes: Sequence[Cloze], how: Literal["token", "sample"], device: torch.device
) -> Tensor:
    """What each text's summed loss is multiplied by, (n,): a mean over all workers' target
    tokens, or over texts of each one's mean."""
    counts = torch.tensor(
        [sum(target != NO_TARGET for target in one.targets) for one in clozes],
        dtype=torch.float32,
        device=device,
    )
    if how == "sample":
        return 1 / counts.clamp(min=1) / len(clozes)
    total, workers = counts.sum(), world()[1]
    if workers > 1:
        dist.all_reduce(total)
    # Gradients will be averaged over the workers: what they would divide by is put in here.
    return torch.full_like(counts, workers / max(1.0, float(total)))


@dataclass(frozen=True)
class Mntp:
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961), a mean over masked tokens."""

    def __call__(self, forwards: Forwards, batch: Sequence[Cloze]) -> tuple[None, Figures]:
        forwards.predict("mntp", batch, token_weights(batch, "token", forwards.device))
        return None, {}


@dataclass(frozen=True)
class Joint:
    """Contrastive + weight × generation in one step (GritLM, arXiv 2402.09906)."""

    contrastive: Contrastive
    weight: float
    mean_over: Literal["token", "sample"]

    def __call__(self, forwards: Forwards, batch: PairsAndClozes) -> tuple[Tensor, Figures]:
        loss, figures = self.contrastive(forwards, batch.pairs)
        weights = self.weight * token_weights(batch.clozes, self.mean_over, forwards.device)
        forwards.predict("generation", batch.clozes, weights)
        return loss, {**figures, "contrastive": loss.item()}
