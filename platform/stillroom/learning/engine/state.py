"""The trained parameters and AdamW's state, shared by both engines."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from stillroom.learning.engine.checkpoint import TENSOR_KINDS, WEIGHT
from stillroom.learning.gather import current_shard


def adamw(
    module: torch.nn.Module, weight_decay: float, *, fused: bool | None = None
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; biases, norms and other vectors are not decayed."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=fused)


def trained_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) of those that require a gradient."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def checkpoint_tensors(
    module: torch.nn.Module, whole: Callable[[torch.nn.Parameter, str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint, one after another: (`KIND.NAME`, whole tensor).

    Args:
        whole: (parameter, kind) → the whole weight or moment.
    """
    return (
        (f"{kind}.{name}", whole(p, kind))
        for name, p in trained_parameters(module)
        for kind in TENSOR_KINDS
    )


def weight_or_moment(
    optimizer: torch.optim.AdamW, p: torch.nn.Parameter, kind: str
) -> torch.Tensor:
    """A weight or one of its moments, for engines whose workers hold whole tensors."""
    return p.detach() if kind == WEIGHT else optimizer.state[p][kind]


def init_optimizer_state(optimizer: torch.optim.AdamW, updated: list[Any]) -> None:
    """Gives AdamW the state that its first step would create."""
    fused = optimizer.defaults["fused"]
    for p in updated:
        moments = {kind: torch.zeros_like(p) for kind in TENSOR_KINDS if kind != WEIGHT}
        # The fused kernel counts steps where the weights are, the others on the CPU.
        step = torch.zeros((), device=p.device if fused else "cpu")
        optimizer.state[p] = {"step": step, **moments}


def set_step_count(optimizer: torch.optim.AdamW, step: int) -> None:
    """Sets AdamW's count of finished steps."""
    for state in optimizer.state.values():
        state["step"].fill_(step)


def broadcast_parameters(parameters: list[torch.nn.Parameter]) -> None:
    """Gives all workers the first one's weights."""
    if current_shard().world > 1:
        for p in parameters:
            dist.broadcast(p.data, src=0)
