"""Requests of any size become forwards of a bounded size, and come apart again.

One rule, a budget of padded tokens for each forward: small requests share one, large requests
take several. Texts of like length go together, so that little of a forward is padding. Requests
take turns to head a forward, so that one query does not wait for another's thousand documents.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np

from stillroom.encoders.prompt import Tokens

MAX_PADDING = 0.25  # of a forward's padded tokens …
SMALL = 1 / 8  # … unless it fills less than this share of the budget: it then costs its launch


def window(lengths: Sequence[tuple[int, ...]], head: int, budget: int) -> tuple[int, int]:
    """The slice [start, end) of texts to encode with the one at `head`.

    Args:
        lengths: one tuple for each waiting text, sorted; its first number is the text's tokens.
        head: place of the text that must be in. It is, even if longer than the budget.
        budget: largest (texts × longest text), in tokens.
    """
    start, end = head, head + 1
    real = lengths[head][0]

    def fits(start: int, end: int, real: int) -> bool:
        padded = (end - start) * lengths[end - 1][0]
        if padded > budget:
            return False
        return padded <= SMALL * budget or padded - real <= MAX_PADDING * padded

    while True:
        shorter = lengths[start - 1][0] if start else None
        longer = lengths[end][0] if end < len(lengths) else None
        # Shorter ones first: they leave the longest, which sets everyone's padding, as it is.
        if shorter is not None and fits(start - 1, end, real + shorter):
            start, real = start - 1, real + shorter
        elif longer is not None and fits(start, end + 1, real + longer):
            end, real = end + 1, real + longer
        else:
            return start, end


@dataclass(eq=False)
class _Request:
    tokens: list[Tokens]
    waiting: dict[int, int]  # place in the request → its tokens, longest first
    rows: list[np.ndarray]
    left: int
    done: "asyncio.Future[np.ndarray]"


class Batcher:
    """Encodes many callers' texts through one thread, a forward at a time.

    Args:
        forward: token lists → float32 rows [n, d], in order. Runs in the batcher's own thread,
            so the event loop goes on taking requests.
        budget: padded tokens in one forward.
        wait_s: how long a forward that is not full waits for company, when nothing is running.

    All methods belong to one event loop.
    """

    def __init__(
        self, forward: Callable[[list[Tokens]], np.ndarray], *, budget: int, wait_s: float
    ):
        self._forward, self._budget, self._wait_s = forward, budget, wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._numbers = count()
        self._requests: dict[int, _Request] = {}  # with texts waiting, whose turn is next first
        self._waiting: list[tuple[int, int, int]] = []  # (tokens, request, place), sorted
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def encode(self, tokens: list[Tokens]) -> np.ndarray:
        """Rows [n, d] for n ≥ 1 token lists, in their order. Raises what `forward` raised."""
        self._loop = self._loop or asyncio.create_task(self._run())
        number = next(self._numbers)
        waiting = sorted(
            ((len(text.ids), number, place) for place, text in enumerate(tokens)), reverse=True
        )
        request = _Request(
            tokens,
            waiting={place: length for length, _, place in waiting},
            rows=[np.empty(0)] * len(tokens),
            left=len(tokens),
            done=asyncio.get_running_loop().create_future(),
        )
        self._requests[number] = request
        self._waiting += waiting
        self._waiting.sort()
        self._arrived.set()
        try:
            return await request.done
        finally:
            # Done: nothing left to drop. Cancelled, the client has left: spend nothing more on it.
            self._drop(number)

    def alive(self) -> bool:
        """False when the loop has died and requests would wait for ever."""
        return self._loop is None or not self._loop.done()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if sum(length for length, _, _ in self._waiting) < self._budget:
                await asyncio.sleep(self._wait_s)
            while self._waiting:
                batch = self._take()
                tokens = [request.tokens[place] for request, place in batch]
                try:
                    rows = await loop.run_in_executor(self._thread, self._forward, tokens)
                except Exception as error:
                    for request, _ in batch:
                        if not request.done.done():
                            request.done.set_exception(error)
                else:
                    self._deliver(batch, rows)

    def _take(self) -> list[tuple[_Request, int]]:
        """Remove the next forward's texts from those that wait."""
        number, request = next(iter(self._requests.items()))
        place, length = next(iter(request.waiting.items()))
        head = bisect_left(self._waiting, (length, number, place))
        start, end = window(self._waiting, head, self._budget)
        taken = self._waiting[start:end]
        del self._waiting[start:end]
        batch = [(self._requests[number], place) for _, number, place in taken]
        for request, place in batch:
            del request.waiting[place]
        self._requests[number] = self._requests.pop(number)  # to the back: the next one's turn
        for number in {number for _, number, _ in taken}:
            if not self._requests[number].waiting:
                del self._requests[number]
        return batch

    def _deliver(self, batch: list[tuple[_Request, int]], rows: np.ndarray) -> None:
        for (request, place), row in zip(batch, rows, strict=True):
            request.rows[place] = row
            request.left -= 1
            if not request.left and not request.done.done():
                request.done.set_result(np.stack(request.rows))

    def _drop(self, number: int) -> None:
        if self._requests.pop(number, None) is not None:
            self._waiting = [entry for entry in self._waiting if entry[1] != number]
