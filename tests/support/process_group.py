"""Real process groups for tests: the same function in several processes, over gloo."""

import functools
import gc
import io
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_workers(world: int, function: Callable[..., Any], *args: Any, **named: Any) -> list[Any]:
    """What function(*args, **named) returns in each of `world` processes, by rank.

    To start them takes seconds, so they stay for the module's next call that wants as many.
    """
    group = _groups.pop(world, None) or _Group(world)
    found = group(functools.partial(function, *args, **named))
    _groups[world] = group
    return found


class _Group:
    def __init__(self, world: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        spawning = mp.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            mine, its = spawning.Pipe()
            process = spawning.Process(target=_worker, args=(rank, world, port, its), daemon=True)
            process.start()
            its.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def __call__(self, call: Callable[[], Any]) -> list[Any]:
        found: dict[int, Any] = {}
        try:
            for pipe in self.pipes:
                pipe.send(call)
            while len(found) < len(self.pipes):
                for pipe in wait([pipe for r, pipe in enumerate(self.pipes) if r not in found]):
                    assert isinstance(pipe, Connection)
                    rank = self.pipes.index(pipe)
                    result, fault = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
                    if fault:
                        raise RuntimeError(f"worker {rank}:\n{fault}")
                    found[rank] = result
        except BaseException:
            self.stop()  # whoever did not fail waits for whoever did
            raise
        return [found[rank] for rank in range(len(self.pipes))]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


_groups: dict[int, _Group] = {}  # by their size


def dismiss() -> None:
    """Ends those that stayed, for each holds some 400 MB."""
    while _groups:
        _groups.popitem()[1].stop()


def _worker(rank: int, world: int, port: int, pipe: Connection) -> None:
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
    while True:
        call = pipe.recv()
        result, fault = None, ""
        try:
            result = call()
        except Exception:
            fault = traceback.format_exc()
        content = io.BytesIO()
        torch.save((result, fault), content)
        pipe.send_bytes(content.getvalue())
        del call, result
        gc.collect()  # engines are cycles, and hold a model each
