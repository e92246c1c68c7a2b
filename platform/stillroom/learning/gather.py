"""The workers of a process group, and all-gather with exact gradients.

Shapes: b rows of this worker, d dims.
"""

from typing import Any

import torch
import torch.distributed as dist

from stillroom.learning.order import SINGLE_WORKER, WorkerShard


def current_shard() -> WorkerShard:
    """This process's rank and the number of workers; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return WorkerShard(dist.get_rank(), dist.get_world_size())
    return SINGLE_WORKER


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_bd: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(local_bd) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local_bd.contiguous())
        ctx.rows = len(local_bd)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        # Every worker's loss reads every row, so a row's gradient is the sum over the workers.
        # Returning only the local slice, or detaching what was gathered, changes its direction.
        total = grads[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def all_gather_with_grad(local_bd: torch.Tensor) -> torch.Tensor:
    """Rows of all workers, (workers × b, d), in order of rank; gradients flow back to each worker.

    Every worker must have the same number of rows. With a loss that is the mean over the
    worker's own queries and gradients averaged over workers, the result equals one process
    holding the whole batch.
    """
    return local_bd if current_shard().world == 1 else _AllGather.apply(local_bd)
