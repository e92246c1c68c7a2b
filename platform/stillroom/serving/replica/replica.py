"""One encoder on one machine: tokenise, batch, encode.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import ray
import torch
from ray import serve

from stillroom.encoders.contract import Role
from stillroom.encoders.ensemble import JointPrompter
from stillroom.encoders.interface import prefix
from stillroom.encoders.tokens.prompter import Prompter, Tokens
from stillroom.release.reader import Release, Target
from stillroom.serving.messages import Encoded, Token, Work
from stillroom.serving.replica.batching import Batcher
from stillroom.serving.replica.engines import Engine, load_engine
from stillroom.serving.replica.tokenizer import decode, pieces, tokenise
from stillroom.serving.telemetry.tracing import phases

T = TypeVar("T")

# Of a forward. A CPU is at its fastest while a layer's states stay in its cache, and what comes
# next waits less; a GPU is not full with less. (On 2 cores MiniLM takes 4.4 ms of CPU for a text at
# 512 and 1024, 4.7 at 2048 and 5.7 at 4096.)
BATCH_TOKENS = {"cpu": 1024, "gpu": 16384}

TOKENISERS = 4  # threads at most: beyond, the interpreter's lock is what they wait for


@serve.deployment
class Replica:
    """Serves one encoder of a release.

    Args:
        release, target: which.
        engine: what runs it; see `engines`.
        max_batch_tokens: in one forward, padding counted where there is any.
        max_wait_ms: how long a forward that is not full waits for company on an idle replica.
        trust_remote_code: runs the Python that the model brings with it.
    """

    def __init__(
        self,
        release: Release,
        target: Target,
        engine: Engine,
        max_batch_tokens: int,
        max_wait_ms: float,
        trust_remote_code: bool,
    ):
        resources = ray.get_runtime_context().get_assigned_resources()
        # More threads than the CPUs that Ray granted would take them from the other replicas.
        threads = max(1, int(resources.get("CPU", 1)))
        torch.set_num_threads(threads)
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizer's, within one request
        gpu = bool(resources.get("GPU"))
        self.encoder = load_engine(
            release,
            target,
            engine,
            threads=threads,
            gpu=gpu,
            trust_remote_code=trust_remote_code,
        )
        self.release = release.ref
        self.max_batch_tokens = max_batch_tokens
        self.batcher = Batcher(
            self.forward,
            budget=max_batch_tokens,
            wait_s=max_wait_ms / 1000,
            packed=self.encoder.packed,
            threads=threads,
            divided=self.encoder.concurrent and not gpu,
        )
        # Hugging Face's fast tokenizers refuse to be shared by threads: each has a copy.
        self.prompters: queue.SimpleQueue[Prompter | JointPrompter] = queue.SimpleQueue()
        for _ in range(min(threads, TOKENISERS)):
            self.prompters.put(self.encoder.prompter.copy())
        self.tokenisers = ThreadPoolExecutor(min(threads, TOKENISERS), "tokenise")
        self.warm_up()

    def warm_up(self) -> None:
        """Encode a short, a long and a full batch, so that no caller pays for what a runtime sets
        up at first use."""
        longest = min(self.encoder.contract.max_tokens, self.max_batch_tokens)
        short = self.encoder.prompter(["warm"], "query")
        long = self.encoder.prompter(["warm " * longest], "passage", max_tokens=longest)
        for texts in (short, long, long * max(1, self.max_batch_tokens // len(long[0].ids))):
            self.forward(texts, torch.get_num_threads())

    def forward(self, tokens: list[Tokens], threads: int) -> np.ndarray:
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)  # of this thread's own
        return self.encoder.encode_tokens(tokens, batch_tokens=self.max_batch_tokens)

    async def encode(self, work: Work) -> Encoded:
        """Raises what `tokenise` raises."""
        started = time.perf_counter()
        tokens = await self.prompted(partial(tokenise, work=work))
        tokenise_s = time.perf_counter() - started
        done = await self.batcher.encode(tokens)
        took = {"tokenise": tokenise_s, "wait": done.wait_s, "encode": done.encode_s}
        phases(work.trace, took)
        return Encoded(
            prefix(done.rows, work.dims, self.encoder.contract.normalise),
            sum(len(text.ids) for text in tokens),
            tokenise_s=tokenise_s,
            wait_s=done.wait_s,
            encode_s=done.encode_s,
            padded_tokens=done.padded_tokens,
            batch_texts=done.batch_texts / done.forwards,
            space=self.encoder.contract.space,
            release=self.release,
        )

    async def pieces(self, texts: list[str], role: Role | None, special: bool) -> list[list[Token]]:
        """See `tokens.pieces`."""
        return await self.prompted(partial(pieces, texts=texts, role=role, special=special))

    async def decode(self, ids: list[list[int]], skip_special: bool) -> list[str]:
        """See `tokens.decode`."""
        return await self.prompted(partial(decode, ids=ids, skip_special=skip_special))

    async def prompted(self, ask: Callable[[Prompter | JointPrompter], T]) -> T:
        """What `ask` says of a prompter, which is its own meanwhile, off the event loop."""

        def borrowed() -> T:
            prompter = self.prompters.get()
            try:
                return ask(prompter)
            finally:
                self.prompters.put(prompter)

        return await asyncio.get_running_loop().run_in_executor(self.tokenisers, borrowed)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self.batcher.alive():
            raise RuntimeError("the batching loop has ended")
