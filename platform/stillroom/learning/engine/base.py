"""Forward, backward, reduce, clip, step, save and load: in plain torch, or by DeepSpeed.

The only file that imports DeepSpeed. Both engines mean the same by a step: the gradients of all
backwards since the last one are added up, averaged over the workers, clipped to a global norm, and
applied with AdamW.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import torch

Offload = Literal["none", "optimizer", "parameters"]


class Engine(Protocol):
    @property
    def forward(self) -> Callable[..., torch.Tensor]: ...

    @property
    def device(self) -> torch.device: ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the loss's gradients to those of this step.

        Args:
            last: nothing more comes before `step`; said of one backward a step, on every worker.
        """

    def step(self, learning_rate: float) -> float:
        """Applies one update; returns the gradient's norm before clipping."""

    def save(self, folder: Path, step: int) -> None:
        """Writes this worker's share of a checkpoint after so many steps; called on every one."""

    def load(self, folder: Path) -> int:
        """Takes up a checkpoint of any engine and any number of workers; returns its steps."""

    def trained(self) -> dict[str, torch.Tensor]:
        """Whole trained tensors by name, on the CPU; called on every worker."""
