"""One encoder on one machine: tokenise, batch, encode.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import os
import time
from functools import partial

import numpy as np
import ray
import torch
from ray import serve

from stillroom.encoders.contract import Role
from stillroom.encoders.interface import truncate_vectors
from stillroom.encoders.tokens.batch import Tokens
from stillroom.encoders.usable_vectors import (
    PLAIN_TEXT,
    BrokenModelError,
    UnusableVectorError,
    broken_model_error,
    broken_weight_error,
    require_usable,
)
from stillroom.release.reader import Release, Target
from stillroom.serving.messages import EncodeJob, EncodeResult, Token
from stillroom.serving.replica.batching import Batcher
from stillroom.serving.replica.engine_choice import Engine
from stillroom.serving.replica.engines import load_engine
from stillroom.serving.replica.prompter_pool import PrompterPool
from stillroom.serving.replica.tokenizer import (
    decode,
    describe_tokens,
    takes_long,
    tokenise,
    unknown_id,
)
from stillroom.serving.telemetry.tracing import record_phases

# Tokens of one forward. A CPU is fastest while a layer's states stay in its cache, and later
# requests wait less; a GPU is not full with less. (On 2 cores MiniLM takes 4.4 ms of CPU for a text
# at 512 and 1024, 4.7 at 2048 and 5.7 at 4096.)
DEFAULT_BATCH_TOKENS = {"cpu": 1024, "gpu": 16384}


@serve.deployment
class Replica:
    """Serves one encoder of a release.

    Args:
        release, target: which encoder.
        engine: runtime of the model; see engine_choice.py.
        max_batch_tokens: in one forward, padding included.
        batch_wait_ms: how long a forward that is not full waits for more texts on an idle replica.
        trust_remote_code: runs Python code that comes with the model.
    """

    def __init__(
        self,
        release: Release,
        target: Target,
        engine: Engine,
        max_batch_tokens: int,
        batch_wait_ms: float,
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
            self.encode_batch,
            batch_tokens=max_batch_tokens,
            max_wait_s=batch_wait_ms / 1000,
            packed=self.encoder.packed,
            threads=threads,
            concurrent=self.encoder.thread_safe and not gpu,
        )
        self.prompters = PrompterPool(self.encoder.prompter, threads)
        self.unknown_id = unknown_id(self.encoder.prompter)
        self.broken: BrokenModelError | None = None  # the reason why no vector is to be trusted
        self.warm_up()

    def warm_up(self) -> None:
        """Encode a short, a long and a full batch, so that no caller waits for a runtime's setup at
        first use.
        """
        max_tokens = min(self.encoder.contract.max_tokens, self.max_batch_tokens)
        short = self.encoder.prompter(["warm"], "query")
        long = self.encoder.prompter(["warm " * max_tokens], "passage", max_tokens=max_tokens)
        full = long * max(1, self.max_batch_tokens // len(long[0].ids))
        for texts in (short, long, full):
            self.encode_batch(texts, torch.get_num_threads())

    def encode_batch(self, tokens: list[Tokens], threads: int) -> np.ndarray:
        """One forward, of the texts that the batcher chose."""
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)  # of this thread only
        return self.encoder.encode_batch(tokens)

    async def encode(self, job: EncodeJob) -> EncodeResult:
        """Encode a request's texts.

        Raises:
            UnusableVectorError: for a text whose vector is not finite or has no length.
            BrokenModelError: when the weights are at fault; the replica is then unhealthy.
            UserError: as `tokenise` does.
        """
        started = time.perf_counter()
        tokens = await self.prompters.run(
            partial(tokenise, request=job.request, max_tokens=job.max_tokens),
            slow=takes_long(job.request),
        )
        tokenise_s = time.perf_counter() - started
        result = await self.batcher.encode(tokens)
        vectors = truncate_vectors(result.vectors, job.dims, self.encoder.contract.normalise)
        await self._require_usable(vectors, job.request.texts)
        phases = {"tokenise": tokenise_s, "wait": result.wait_s, "encode": result.encode_s}
        record_phases(job.trace, phases)
        return EncodeResult(
            vectors,
            sum(len(text.ids) for text in tokens),
            unknown_tokens=None
            if self.unknown_id is None
            else sum(text.ids.count(self.unknown_id) for text in tokens),
            tokenise_s=tokenise_s,
            wait_s=result.wait_s,
            encode_s=result.encode_s,
            padded_tokens=result.padded_tokens,
            batch_texts=result.batch_texts / result.forwards,
            space=self.encoder.contract.space,
            release=self.release,
        )

    async def _require_usable(self, vectors: np.ndarray, texts: list[str]) -> None:
        """Checks a request's vectors; raises as `encode` does.

        Args:
            texts: empty where the request has token ids.
        """
        try:
            require_usable(vectors, normalised=self.encoder.contract.normalise, texts=texts or None)
        except UnusableVectorError:
            weight = await asyncio.to_thread(self.encoder.broken_weight)
            if weight is not None:
                self.broken = broken_weight_error(f"{self.release}: {weight}")
            elif await self._gives_no_finite_vector():
                self.broken = broken_model_error(self.release)
            if self.broken is not None:
                raise self.broken from None
            raise

    async def _gives_no_finite_vector(self) -> bool:
        """Whether the model is at fault, as far as a plain text shows it."""
        tokens = await self.prompters.run(lambda prompter: prompter([PLAIN_TEXT], "query"))
        result = await self.batcher.encode(tokens)
        return not np.isfinite(result.vectors).all()

    async def tokenize(
        self,
        texts: list[str],
        role: Role | None,
        special: bool,
        prompt_name: str | None,
        max_tokens: int,
    ) -> list[list[Token]]:
        """See `tokenizer.describe_tokens`."""
        describe = partial(
            describe_tokens,
            texts=texts,
            role=role,
            special=special,
            prompt_name=prompt_name,
            max_tokens=max_tokens,
        )
        return await self.prompters.run(describe, slow=True)

    async def decode(self, ids: list[list[int]], skip_special: bool) -> list[str]:
        """See `tokenizer.decode`."""
        use = partial(decode, ids=ids, skip_special=skip_special)
        return await self.prompters.run(use, slow=True)

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if not self.batcher.alive():
            raise RuntimeError("the batching loop has ended")
        if self.broken is not None:
            raise self.broken
