"""Real process groups for tests: the same function in several processes, over gloo."""

import functools
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_workers(world: int, function: Callable[..., Any], *args: Any, **named: Any) -> list[Any]:
    """What function(*args, **named) returns in each of `world` fresh processes, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        call = functools.partial(function, *args, **named)
        mp.spawn(_worker, (world, port, folder, call), nprocs=world)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def _worker(rank: int, world: int, port: int, folder: str, call: Callable[[], Any]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.save(call(), Path(folder) / str(rank))
    dist.destroy_process_group()
