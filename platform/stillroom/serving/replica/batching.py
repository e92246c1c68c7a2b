"""Requests of any size become forwards of a bounded size, and come apart again.

One rule, a budget of tokens for each forward: small requests share one, large requests take
several. Texts of like length go together, so that little of a forward is padding. Every other
forward is headed by the request with the least left, so that one query does not wait for another's
thousand documents; the rest by the oldest, so that none waits for ever. Taking turns in a ring
would have them all answered at the very end.

A CPU's threads go to as many forwards as what waits is worth: each is faster alone than with a
share of another's layers, between which all would wait for the last.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from math import ceil

import numpy as np

from stillroom.encoders.tokens.prompter import Tokens

MAX_PADDING = 0.25  # of a forward's padded tokens …

SMALL = 1 / 8  # … unless it fills less than this share of the budget

LEAST = 1 / 16  # of the budget: with less, a forward of its own costs more than it saves


def window(
    lengths: Sequence[tuple[int, ...]],
    head: int,
    budget: int,
    small: float,
    *,
    packed: bool = False,
) -> tuple[int, int]:
    """The slice [start, end) of texts to encode with the one at `head`.

    Args:
        lengths: one tuple for each waiting text, sorted; its first number is the text's tokens.
        head: place of the text that must be in. It is, even if longer than the budget.
        budget: largest (texts × longest text), in tokens; packed, their sum.
        small: up to so many, padding costs less than another forward's launch.
        packed: a forward has no padding.
    """
    start, end = head, head + 1
    real = lengths[head][0]

    def fits(start: int, end: int, real: int) -> bool:
        padded = real if packed else (end - start) * lengths[end - 1][0]
        if padded > budget:
            return False
        return padded <= small or padded - real <= MAX_PADDING * padded

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


def share(waiting: int, tokens: int, free: int, budget: int) -> tuple[int, int]:
    """How many of the free threads the next forward gets, and its part of the budget.

    Args:
        waiting, tokens: texts that wait, and their tokens.
        free: threads, one or more.
        budget: of a forward, in tokens.
    """
    forwards = max(1, min(free, waiting, int(tokens / (LEAST * budget))))
    return free // forwards, min(budget, ceil(tokens / forwards))


@dataclass(frozen=True)
class Batched:
    """A request's rows [n, d], in order, and what became of it.

    Attributes:
        wait_s, encode_s: seconds; encode_s is when a forward with texts of it ran, or several,
            and everything else from arrival to answer is wait.
        padded_tokens: of its texts, the longest of each one's forward, or their own where forwards
            have no padding.
        forwards: how many it took.
        batch_texts: texts in them all, other requests' too.
    """

    rows: np.ndarray
    wait_s: float
    encode_s: float
    padded_tokens: int
    forwards: int
    batch_texts: int


@dataclass(eq=False)
class _Request:
    tokens: list[Tokens]
    waiting: dict[int, int]  # place in the request → its tokens, longest first
    done: "asyncio.Future[None]"
    left: int
    rows: np.ndarray | None = None  # of the first forward's width, once that is known
    running: int = 0  # forwards with texts of it …
    since: float = 0.0  # … and when the first of them began
    encode_s: float = 0.0
    padded_tokens: int = 0
    forwards: int = 0
    batch_texts: int = 0

    def begin(self) -> None:
        if not self.running:
            self.since = time.perf_counter()
        self.running += 1

    def end(self) -> None:
        self.running -= 1
        if not self.running:
            self.encode_s += time.perf_counter() - self.since


class Batcher:
    """Encodes many callers' texts together.

    Args:
        forward: token lists, and how many threads it may use → float32 rows [n, d], in order. Runs
            in a thread of the batcher's own, so the event loop goes on taking requests.
        budget: tokens in one forward, padding counted where there is any.
        wait_s: how long a forward that is not full waits for company, when nothing waits and the
            forward before had company: who calls alone would wait in vain.
        packed: a forward has no padding.
        threads: for one forward, or …
        divided: … for several at once, each with some of them.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        forward: Callable[[list[Tokens], int], np.ndarray],
        *,
        budget: int,
        wait_s: float,
        packed: bool = False,
        threads: int = 1,
        divided: bool = False,
    ):
        self._forward, self._budget, self._wait_s = forward, budget, wait_s
        self._packed, self._free, self._divided = packed, threads, divided
        self._threads = ThreadPoolExecutor(threads if divided else 1, thread_name_prefix="forward")
        self._numbers = count()
        self._requests: dict[int, _Request] = {}  # with texts waiting, oldest first
        self._waiting: list[tuple[int, int, int]] = []  # (tokens, request, place), sorted
        self._changed = asyncio.Event()  # texts have come, or a thread is free
        self._oldest_next = False
        self._company = False  # had the last forward texts of several requests?
        self._loop: asyncio.Task[None] | None = None

    async def encode(self, tokens: list[Tokens]) -> Batched:
        """Encodes n ≥ 1 token lists. Raises what `forward` raised."""
        arrived = time.perf_counter()
        self._loop = self._loop or asyncio.create_task(self._run())
        number = next(self._numbers)
        waiting = sorted(
            ((len(text.ids), number, place) for place, text in enumerate(tokens)), reverse=True
        )
        request = _Request(
            tokens,
            waiting={place: length for length, _, place in waiting},
            done=asyncio.get_running_loop().create_future(),
            left=len(tokens),
        )
        self._requests[number] = request
        # Two sorted runs, which a sort merges in linear time: 20 µs where 1,000 texts wait.
        self._waiting += waiting
        self._waiting.sort()
        self._changed.set()
        try:
            await request.done
        finally:
            # Done: nothing left to drop. Cancelled, the client has left: spend nothing more on it.
            self._drop(number)
        assert request.rows is not None
        return Batched(
            request.rows,
            time.perf_counter() - arrived - request.encode_s,
            request.encode_s,
            request.padded_tokens,
            request.forwards,
            request.batch_texts,
        )

    def alive(self) -> bool:
        """False when the loop has died and requests would wait for ever."""
        return self._loop is None or not self._loop.done()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as running:  # a fault of ours in one ends all, and `alive`
            while True:
                idle = self._free
                await self._changed.wait()
                self._changed.clear()
                if idle and self._company and self._tokens() < self._budget:
                    await asyncio.sleep(self._wait_s)
                while self._waiting and self._free:
                    threads, part = self._free, self._budget
                    if self._divided:
                        threads, part = share(len(self._waiting), self._tokens(), threads, part)
                    self._free -= threads
                    running.create_task(self._encode(self._take(part), threads))

    def _tokens(self) -> int:
        return sum(length for length, _, _ in self._waiting)

    async def _encode(self, batch: list[tuple[_Request, int]], threads: int) -> None:
        tokens = [request.tokens[place] for request, place in batch]
        requests = list({id(request): request for request, _ in batch}.values())
        for request in requests:
            request.begin()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._forward, tokens, threads
            )
        except Exception as error:
            for request in requests:
                self._fail(request, error)
        else:
            for request in requests:
                request.end()
                request.forwards += 1
                request.batch_texts += len(batch)
            self._deliver(batch, rows)
        finally:
            self._free += threads
            self._changed.set()

    def _take(self, budget: int) -> list[tuple[_Request, int]]:
        """Remove the next forward's texts from those that wait."""
        number = next(iter(self._requests))
        if not self._oldest_next:
            number = min(self._requests, key=lambda one: len(self._requests[one].waiting))
        self._oldest_next = not self._oldest_next
        request = self._requests[number]
        place, length = next(iter(request.waiting.items()))
        head = bisect_left(self._waiting, (length, number, place))
        small = SMALL * self._budget
        start, end = window(self._waiting, head, budget, small, packed=self._packed)
        taken = self._waiting[start:end]
        del self._waiting[start:end]
        batch = [(self._requests[number], place) for _, number, place in taken]
        for request, place in batch:
            del request.waiting[place]
        numbers = {number for _, number, _ in taken}
        self._company = len(numbers) > 1
        for number in numbers:
            if not self._requests[number].waiting:
                del self._requests[number]
        return batch

    def _deliver(self, batch: list[tuple[_Request, int]], rows: np.ndarray) -> None:
        """Hand a forward's rows to the requests that had texts in it."""
        longest = max(len(request.tokens[place].ids) for request, place in batch)
        for (request, place), row in zip(batch, rows, strict=True):
            if request.rows is None:
                request.rows = np.empty((len(request.tokens), len(row)), dtype=np.float32)
            request.rows[place] = row
            own = len(request.tokens[place].ids)
            request.padded_tokens += own if self._packed else longest
            request.left -= 1
            if not request.left and not request.done.done():
                request.done.set_result(None)

    def _fail(self, request: _Request, error: Exception) -> None:
        if not request.done.done():
            request.done.set_exception(error)
            for number in [n for n, one in self._requests.items() if one is request]:
                self._drop(number)  # its other texts would be encoded for no one

    def _drop(self, number: int) -> None:
        if self._requests.pop(number, None) is not None:
            self._waiting = [entry for entry in self._waiting if entry[1] != number]
