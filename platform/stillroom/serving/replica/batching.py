"""Batches of many callers' texts: requests of any size become forwards of a bounded size.

See batch_planning.py for the decisions; this file carries them out.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np

from stillroom.encoders.tokens.batch import Tokens
from stillroom.serving.replica.batch_planning import (
    SMALL_BATCH,
    choose_batch,
    choose_request,
    split_threads,
)


@dataclass(frozen=True)
class BatchedResult:
    """A request's vectors, and what encoding them cost.

    Attributes:
        vectors: float32, [n, d], in the order of the request's texts.
        wait_s, encode_s: seconds. encode_s is the time while forwards with texts of the request
            ran; wait_s is the rest of the time from arrival to answer.
        padded_tokens: for each of its texts, the longest of that text's forward; the text's own
            tokens where forwards have no padding.
        forwards: with texts of the request.
        batch_texts: texts in all of those forwards, other requests' too.
    """

    vectors: np.ndarray
    wait_s: float
    encode_s: float
    padded_tokens: int
    forwards: int
    batch_texts: int


@dataclass(eq=False)
class _PendingRequest:
    tokens: list[Tokens]
    waiting: dict[int, int]  # index in the request → the text's tokens, longest first
    done: "asyncio.Future[None]"
    unfinished: int  # texts
    vectors: np.ndarray | None = None  # once the first forward has shown the width
    running: int = 0  # forwards with texts of the request …
    running_since: float = 0.0  # … and when the first of them started
    encode_s: float = 0.0
    padded_tokens: int = 0
    forwards: int = 0
    batch_texts: int = 0

    def forward_started(self) -> None:
        if not self.running:
            self.running_since = time.perf_counter()
        self.running += 1

    def forward_finished(self, batch_texts: int) -> None:
        self.running -= 1
        if not self.running:
            self.encode_s += time.perf_counter() - self.running_since
        self.forwards += 1
        self.batch_texts += batch_texts

    def deliver(self, index: int, vector: np.ndarray, padded_tokens: int) -> None:
        if self.vectors is None:
            self.vectors = np.empty((len(self.tokens), len(vector)), dtype=np.float32)
        self.vectors[index] = vector
        self.padded_tokens += padded_tokens
        self.unfinished -= 1
        if not self.unfinished and not self.done.done():
            self.done.set_result(None)

    def result(self, arrived: float) -> BatchedResult:
        assert self.vectors is not None
        return BatchedResult(
            self.vectors,
            time.perf_counter() - arrived - self.encode_s,
            self.encode_s,
            self.padded_tokens,
            self.forwards,
            self.batch_texts,
        )


class Batcher:
    """Encodes many callers' texts together.

    Args:
        forward: texts of one forward, and how many threads it may use → float32 vectors [n, d], in
            order. Runs in the batcher's thread, so the event loop keeps accepting requests.
        batch_tokens: in one forward, padding included.
        max_wait_s: how long a forward that is not full waits for more texts when nothing else
            runs, if the forward before it was shared: a single caller would wait in vain.
        packed: a forward has no padding.
        threads: for one forward, or with `concurrent` for several at once.
        concurrent: several forwards may run at once, each on some of the threads.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        forward: Callable[[list[Tokens], int], np.ndarray],
        *,
        batch_tokens: int,
        max_wait_s: float,
        packed: bool = False,
        threads: int = 1,
        concurrent: bool = False,
    ):
        self._forward, self._batch_tokens, self._max_wait_s = forward, batch_tokens, max_wait_s
        self._packed, self._free_threads, self._concurrent = packed, threads, concurrent
        self._executor = ThreadPoolExecutor(threads if concurrent else 1, "forward")
        self._numbers = count()
        self._requests: dict[int, _PendingRequest] = {}  # with texts waiting, oldest first
        self._waiting: list[tuple[int, int, int]] = []  # (tokens, request, index), sorted
        self._changed = asyncio.Event()  # texts have arrived, or a thread is free
        self._oldest_next = False
        self._last_was_shared = False  # whether the last forward had texts of several requests
        self._loop: asyncio.Task[None] | None = None

    async def encode(self, tokens: list[Tokens]) -> BatchedResult:
        """Encode n ≥ 1 texts. Raises what `forward` raised."""
        arrived = time.perf_counter()
        self._loop = self._loop or asyncio.create_task(self._run())
        number = next(self._numbers)
        waiting = sorted(
            ((len(text.ids), number, index) for index, text in enumerate(tokens)), reverse=True
        )
        request = _PendingRequest(
            tokens,
            waiting={index: length for length, _, index in waiting},
            done=asyncio.get_running_loop().create_future(),
            unfinished=len(tokens),
        )
        self._requests[number] = request
        # Two sorted runs, which a sort merges in linear time: 20 µs where 1,000 texts wait.
        self._waiting += waiting
        self._waiting.sort()
        self._changed.set()
        try:
            await request.done
        finally:
            # Done: nothing is left to drop. Cancelled: the client disconnected, so stop its work.
            self._drop(number)
        return request.result(arrived)

    def alive(self) -> bool:
        """False when the loop has died and requests would wait forever."""
        return self._loop is None or not self._loop.done()

    async def _run(self) -> None:
        # An internal bug in one forward ends the group, and with it this loop: see `alive`.
        async with asyncio.TaskGroup() as forwards:
            while True:
                was_idle = self._free_threads
                await self._changed.wait()
                self._changed.clear()
                full = self._waiting_tokens() >= self._batch_tokens
                if was_idle and self._last_was_shared and not full:
                    await asyncio.sleep(self._max_wait_s)
                while self._waiting and self._free_threads:
                    threads, budget = self._free_threads, self._batch_tokens
                    if self._concurrent:
                        texts, tokens = len(self._waiting), self._waiting_tokens()
                        threads, budget = split_threads(texts, tokens, threads, budget)
                    self._free_threads -= threads
                    forwards.create_task(self._run_forward(self._take_batch(budget), threads))

    def _waiting_tokens(self) -> int:
        return sum(tokens for tokens, _, _ in self._waiting)

    def _take_batch(self, budget: int) -> list[tuple[_PendingRequest, int]]:
        """Remove the next forward's texts from the waiting ones."""
        texts_left = {number: len(request.waiting) for number, request in self._requests.items()}
        first = choose_request(texts_left, oldest=self._oldest_next)
        self._oldest_next = not self._oldest_next
        index, tokens = next(iter(self._requests[first].waiting.items()))
        anchor = bisect_left(self._waiting, (tokens, first, index))
        small = SMALL_BATCH * self._batch_tokens
        start, end = choose_batch(self._waiting, anchor, budget, small, packed=self._packed)
        taken = self._waiting[start:end]
        del self._waiting[start:end]
        batch = [(self._requests[number], index) for _, number, index in taken]
        for request, index in batch:
            del request.waiting[index]
        numbers = {number for _, number, _ in taken}
        self._last_was_shared = len(numbers) > 1
        for number in numbers:
            if not self._requests[number].waiting:
                del self._requests[number]
        return batch

    async def _run_forward(self, batch: list[tuple[_PendingRequest, int]], threads: int) -> None:
        tokens = [request.tokens[index] for request, index in batch]
        requests = list({id(request): request for request, _ in batch}.values())
        for request in requests:
            request.forward_started()
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._forward, tokens, threads
            )
        except Exception as error:
            for request in requests:
                self._fail(request, error)
        else:
            for request in requests:
                request.forward_finished(len(batch))
            longest = max(len(text.ids) for text in tokens)
            for (request, index), text, vector in zip(batch, tokens, vectors, strict=True):
                request.deliver(index, vector, len(text.ids) if self._packed else longest)
        finally:
            self._free_threads += threads
            self._changed.set()

    def _fail(self, failed: _PendingRequest, error: Exception) -> None:
        if not failed.done.done():
            failed.done.set_exception(error)
            for number in [n for n, request in self._requests.items() if request is failed]:
                self._drop(number)  # nobody would receive its other texts

    def _drop(self, number: int) -> None:
        if self._requests.pop(number, None) is not None:
            self._waiting = [entry for entry in self._waiting if entry[1] != number]
