"""TODO docstring: learning/engine/torch_engine.py."""

import functools
from pathlib import Path

import torch
import torch.distributed as dist

from stillroom.learning.engine import checkpoint
from stillroom.learning.engine.checkpoint import KINDS
from stillroom.learning.engine.state import (
    _begin,
    _each,
    _go_on,
    _held,
    _same_start,
    _trained,
    adamw,
)
from stillroom.learning.gather import world


class TorchEngine:
    """One process, or several with their gradients averaged by hand."""

    def __init__(self, module: torch.nn.Module, *, weight_decay: float, clip: float):
        self.module, self.clip = module, clip
        self.forward = module
        self.parameters = [p for _, p in _trained(module)]
        self.tables = _embeddings(module)
        # One pass over the weights where the plain one makes ten.
        self.optimizer = adamw(module, weight_decay, fused=True)
        _begin(self.optimizer, self.parameters)
        _same_start(self.parameters)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        if world()[1] > 1:
            self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _average_gradients(self) -> None:
        """Over the workers. Of embeddings only rows travel that some worker's texts have: they are
        most of a small encoder's weights, and a batch has few of them."""
        gradients = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters}
        rows = _touched([gradients[p] for p in self.tables])
        of = dict(zip(self.tables, rows, strict=True))
        parts = [gradients[p][of.get(p, ...)] for p in self.parameters]
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        flat /= world()[1]
        means = flat.split([part.numel() for part in parts])
        for p, part, mean in zip(self.parameters, parts, means, strict=True):
            gradients[p][of.get(p, ...)] = mean.view_as(part)
            p.grad = gradients[p]

    def save(self, folder: Path, step: int) -> None:
        whole = functools.partial(_held, self.optimizer)
        checkpoint.write(folder, step, _each(self.module, whole))

    def load(self, folder: Path) -> int:
        step, saved = checkpoint.read(folder)
        _go_on(self.optimizer, step)
        for name, p in _trained(self.module):
            for kind in KINDS:
                _held(self.optimizer, p, kind).copy_(saved(f"{kind}.{name}"))
        return step

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().cpu().clone() for name, p in _trained(self.module)}


def _embeddings(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Tables of vectors, one a token or position, that are trained."""
    tables = {m.weight for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    return [p for _, p in _trained(module) if p in tables]


def _touched(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of each table the rows that some worker has, the same on all of them."""
    if not gradients:
        return []
    touched = torch.cat([gradient.any(dim=1) for gradient in gradients]).byte()
    dist.all_reduce(touched, op=dist.ReduceOp.MAX)
    return [part.nonzero()[:, 0] for part in touched.split([len(g) for g in gradients])]
