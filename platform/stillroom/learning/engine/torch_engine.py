"""Training in plain torch, by one process or several."""

import functools
from pathlib import Path

import torch
import torch.distributed as dist

from stillroom.learning.engine import checkpoint
from stillroom.learning.engine.checkpoint import TENSOR_KINDS
from stillroom.learning.engine.state import (
    adamw,
    broadcast_parameters,
    checkpoint_tensors,
    init_optimizer_state,
    set_step_count,
    trained_parameters,
    weight_or_moment,
)
from stillroom.learning.gather import current_shard


class TorchEngine:
    """Plain torch as an `Engine`; several processes average their gradients.

    Args:
        max_grad_norm: the gradient's global norm is clipped to it.
    """

    def __init__(self, module: torch.nn.Module, *, weight_decay: float, max_grad_norm: float):
        self.module, self.max_grad_norm = module, max_grad_norm
        self.forward = module
        self.parameters = [p for _, p in trained_parameters(module)]
        self.embeddings = _trained_embeddings(module)
        # The fused kernel makes one pass over the weights where the plain one makes ten.
        self.optimizer = adamw(module, weight_decay, fused=True)
        init_optimizer_state(self.optimizer, self.parameters)
        broadcast_parameters(self.parameters)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        if current_shard().world > 1:
            self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _average_gradients(self) -> None:
        """Averages gradients over the workers.

        Of embeddings, only the rows that some worker's texts use are exchanged: embeddings are most
        of a small encoder's weights, and a batch uses few rows.
        """
        gradients = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters}
        used_rows = _used_rows([gradients[p] for p in self.embeddings])
        rows_of = dict(zip(self.embeddings, used_rows, strict=True))
        parts = [gradients[p][rows_of.get(p, ...)] for p in self.parameters]
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        flat /= current_shard().world
        means = flat.split([part.numel() for part in parts])
        for p, part, mean in zip(self.parameters, parts, means, strict=True):
            gradients[p][rows_of.get(p, ...)] = mean.view_as(part)
            p.grad = gradients[p]

    def save(self, folder: Path, step: int) -> None:
        whole = functools.partial(weight_or_moment, self.optimizer)
        checkpoint.write_checkpoint(folder, step, checkpoint_tensors(self.module, whole))

    def load(self, folder: Path) -> int:
        step, saved = checkpoint.read_checkpoint(folder)
        set_step_count(self.optimizer, step)
        for name, p in trained_parameters(self.module):
            for kind in TENSOR_KINDS:
                weight_or_moment(self.optimizer, p, kind).copy_(saved(f"{kind}.{name}"))
        return step

    def trained_weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().cpu().clone() for name, p in trained_parameters(self.module)}


def _trained_embeddings(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Weights of the embeddings, of tokens or positions, that are trained."""
    weights = {m.weight for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    return [p for _, p in trained_parameters(module) if p in weights]


def _used_rows(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """For each embedding, the rows with a gradient on some worker, the same on all workers."""
    if not gradients:
        return []
    used = torch.cat([gradient.any(dim=1) for gradient in gradients]).byte()
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    return [part.nonzero()[:, 0] for part in used.split([len(g) for g in gradients])]
