"""One encoder on one machine: tokenise, batch, encode.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import ray
import torch
from ray import serve

from stillroom.encoders.contract import Role
from stillroom.encoders.encode import Encoder, prefix
from stillroom.encoders.prompt import Tokens
from stillroom.encoders.store import load
from stillroom.serving.batching import Batcher
from stillroom.serving.policies import Target
from stillroom.serving.release import Release
from stillroom.serving.request import Encoded, Token, Work
from stillroom.serving.tokens import decode, pieces, tokenise


@serve.deployment
class Replica:
    """Serves one encoder of a release.

    Args:
        release, target: which.
        max_batch_tokens: padded tokens in one forward.
        max_wait_ms: how long a forward that is not full waits for company on an idle replica.
    """

    def __init__(self, release: Release, target: Target, max_batch_tokens: int, max_wait_ms: float):
        resources = ray.get_runtime_context().get_assigned_resources()
        # More threads than the CPUs that Ray granted would take them from the other replicas.
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        self.encoder: Encoder = load(
            release.encoder_folder(target), device="cuda" if resources.get("GPU") else "cpu"
        )
        self.max_batch_tokens = max_batch_tokens
        self.batcher = Batcher(self.forward, budget=max_batch_tokens, wait_s=max_wait_ms / 1000)
        # One thread: Hugging Face's fast tokenizers refuse to be shared between several.
        self.tokeniser = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self.warm_up()

    def warm_up(self) -> None:
        """Encode one short and one full batch, so that no caller pays for first allocations."""
        longest = self.encoder.contract.max_tokens
        word = "warm "
        self.forward(self.encoder.prompter([word], "query"))
        full = self.encoder.prompter([word * longest], "passage")
        self.forward(full * max(1, self.max_batch_tokens // len(full[0].ids)))

    def forward(self, tokens: list[Tokens]) -> np.ndarray:
        return self.encoder.encode_tokens(tokens, batch_tokens=self.max_batch_tokens)

    async def encode(self, work: Work) -> Encoded:
        """Raises what `tokenise` raises."""
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self.tokeniser, tokenise, self.encoder.prompter, work)
        vectors = await self.batcher.encode(tokens)
        return Encoded(
            prefix(vectors, work.dims, self.encoder.contract.normalise),
            sum(len(text.ids) for text in tokens),
        )

    async def pieces(self, texts: list[str], role: Role | None, special: bool) -> list[list[Token]]:
        """See `tokens.pieces`."""
        ask = partial(pieces, self.encoder.prompter, texts, role=role, special=special)
        return await asyncio.get_running_loop().run_in_executor(self.tokeniser, ask)

    async def decode(self, ids: list[list[int]], skip_special: bool) -> list[str]:
        """See `tokens.decode`."""
        ask = partial(decode, self.encoder.prompter, ids, skip_special=skip_special)
        return await asyncio.get_running_loop().run_in_executor(self.tokeniser, ask)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self.batcher.alive():
            raise RuntimeError("the batching loop has ended")
