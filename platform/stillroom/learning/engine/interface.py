"""The interface of an engine for the training loop: backward, step, save and load.

A step is the same in both engines: the gradients of all backwards since the last step are summed,
averaged over the workers, clipped to a global norm, and applied with AdamW.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import torch

Offload = Literal["none", "optimizer", "parameters"]


class Engine(Protocol):
    """A model with its optimizer. Every method is called on every worker."""

    @property
    def forward(self) -> Callable[..., torch.Tensor]:
        """The model's forward, as the engine wraps it."""

    @property
    def device(self) -> torch.device: ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the loss's gradients to those of this step.

        Args:
            last: no backward follows before `step`; true for one backward per step, on every
                worker.
        """

    def step(self, learning_rate: float) -> float:
        """Applies one update; returns the gradient's norm before clipping."""

    def save(self, folder: Path, step: int) -> None:
        """Writes this worker's share of a checkpoint after `steps` steps."""

    def load(self, folder: Path) -> int:
        """Loads a checkpoint of any engine and any number of workers; returns its steps."""

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """Whole trained tensors by name, on the CPU."""
