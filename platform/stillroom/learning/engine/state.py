"""TODO docstring: learning/engine/state.py."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from stillroom.learning.engine.checkpoint import KINDS, WEIGHT
from stillroom.learning.gather import world


def adamw(
    module: torch.nn.Module, weight_decay: float, *, fused: bool | None = None
) -> torch.optim.AdamW:
    """AdamW over what is trained; biases, norms and other vectors are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=fused)


def _trained(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _each(
    module: torch.nn.Module, whole: Callable[[torch.nn.Parameter, str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds, one tensor after another."""
    return ((f"{kind}.{name}", whole(p, kind)) for name, p in _trained(module) for kind in KINDS)


def _held(optimizer: torch.optim.AdamW, p: torch.nn.Parameter, kind: str) -> torch.Tensor:
    """A weight or a moment of it, where every worker holds the whole."""
    return p.detach() if kind == WEIGHT else optimizer.state[p][kind]


def _begin(optimizer: torch.optim.AdamW, updated: list[Any]) -> None:
    """Gives AdamW the state that its first step would make."""
    fused = optimizer.defaults["fused"]
    for p in updated:
        moments = {kind: torch.zeros_like(p) for kind in KINDS if kind != WEIGHT}
        # The fused kernel counts where the weights are, the others on the CPU.
        step = torch.zeros((), device=p.device if fused else "cpu")
        optimizer.state[p] = {"step": step, **moments}


def _go_on(optimizer: torch.optim.AdamW, step: int) -> None:
    """Tells AdamW that so many steps were made."""
    for state in optimizer.state.values():
        state["step"].fill_(step)


def _same_start(parameters: list[torch.nn.Parameter]) -> None:
    """All workers begin with the first one's weights."""
    if world()[1] > 1:
        for p in parameters:
            dist.broadcast(p.data, src=0)
