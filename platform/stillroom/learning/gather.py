"""Negatives across workers, with exact gradients."""

from typing import Any

import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """(rank, number of workers); (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine_bd: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(mine_bd) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine_bd.contiguous())
        ctx.rows = len(mine_bd)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        # Every worker's loss reads every row, so a row's gradient is the sum over the workers.
        # Returning only the own slice, or detaching what was gathered, changes its direction.
        total = grads[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(mine_bd: torch.Tensor) -> torch.Tensor:
    """Rows of all workers, (workers × b, d), in order of rank; gradients flow to each.

    Every worker must bring the same number of rows. With a loss that is the mean over the
    worker's own queries and gradients averaged over workers, the result equals one process
    holding the whole batch.
    """
    return mine_bd if world()[1] == 1 else _Gather.apply(mine_bd)
