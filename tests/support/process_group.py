"""Real process groups for tests: one function in several processes, over gloo."""

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
    """Runs function(*args, **named) in each of `world` processes; returns the results by rank.

    Starting them takes seconds, so they stay for the next call with the same `world`: at most
    `MOST_PROCESSES` in all, as each holds some 400 MB.
    """
    group = _groups.pop(world, None)
    if group is None:
        if world + sum(_groups) > MOST_PROCESSES:
            stop_all()
        group = _Group(world)
    results = group(functools.partial(function, *args, **named))
    _groups[world] = group
    return results


class _Group:
    def __init__(self, world: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Forked from a server that has done the imports: they would take six seconds per process.
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.pipes, self.processes = [], []
        for rank in range(world):
            pipe, worker_pipe = context.Pipe()
            process = context.Process(
                target=_worker, args=(rank, world, port, worker_pipe), daemon=True
            )
            process.start()
            worker_pipe.close()
            self.pipes.append(pipe)
            self.processes.append(process)

    def __call__(self, call: Callable[[], Any]) -> list[Any]:
        results: dict[int, Any] = {}
        try:
            for pipe in self.pipes:
                pipe.send(call)
            while len(results) < len(self.pipes):
                for pipe in wait([pipe for r, pipe in enumerate(self.pipes) if r not in results]):
                    assert isinstance(pipe, Connection)
                    rank = self.pipes.index(pipe)
                    result, error = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
                    if error:
                        raise RuntimeError(f"worker {rank}:\n{error}")
                    results[rank] = result
        except BaseException:
            self.stop()  # the other workers wait for the one that failed
            raise
        return [results[rank] for rank in range(len(self.pipes))]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


_groups: dict[int, _Group] = {}  # by world size
MOST_PROCESSES = 7  # one group each of 1, 2 and 4
PRELOADED = [
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "stillroom.encoders.files.create",
    "stillroom.learning.engine.deepspeed_engine",
]


def stop_all() -> None:
    """Ends the processes that `in_workers` keeps."""
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
        "TORCHDYNAMO_DISABLE": "1",  # as in the processes that train on CPUs
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    while True:
        call = pipe.recv()
        result, error = None, ""
        try:
            result = call()
        except Exception:
            error = traceback.format_exc()
        content = io.BytesIO()
        torch.save((result, error), content)
        pipe.send_bytes(content.getvalue())
        del call, result
        gc.collect()  # engines are cycles, and hold a model each
