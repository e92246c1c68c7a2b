"""How busy an encoder is, from what was begun and done and what Serve knows: no Ray, no clock."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

MEMORY_S = 10.0  # how much of the past the pace remembers, in seconds with work


class Meter:
    """How long one encoder's requests take, as one router sees it.

    With less ongoing than fills a forward, a request takes as long as it takes whatever its cost:
    what lone queries took says nothing of how many could have been done in that time. With more,
    all of it is done at a pace. So either is learned at its own times.

    Costs are in any one unit, here characters. Times are seconds of one clock that never goes back.

    Args:
        full: cost that fills a forward.
    """

    def __init__(self, full: float) -> None:
        self.ongoing = 0
        self._cost = 0.0  # of what is ongoing
        self._few_s = 0.0  # a clock that stands while there is more than fills a forward
        self._ended_s = 0.0  # what it said when a request was done, or given up
        self._full = full
        self._few = _Late()  # requests done, and the seconds of that clock that each took, summed
        self._many = _Late()  # cost done, and the seconds that it took
        self._seen_s = 0.0

    def begin(self, cost: float, now: float) -> "Begun":
        self._pass(now)
        self.ongoing += 1
        self._cost += cost
        return Begun(cost, self._few_s)

    def end(self, of: "Begun", now: float, *, done: bool) -> None:
        """`done` is False for what was given up: that says nothing of the pace."""
        self._pass(now)
        if done and self._cost < self._full:
            self._few.done += 1
            self._few.spent_s += self._few_s - of.few_s
        elif done:
            self._many.done += of.cost
        self.ongoing -= 1
        self._cost = self._cost - of.cost if self.ongoing else 0.0
        self._ended_s = self._few_s

    def wait_s(self, now: float) -> float:
        """Until all that is ongoing is done; 0 while nothing was done yet, so no pace is known."""
        self._pass(now)
        if not self.ongoing:
            return 0.0
        if self._cost >= self._full and self._many.done:
            # Requests that shared a forward are told one after the other: on the average, half of
            # the others' cost is done and was not told yet.
            untold = max(0.0, self._full - self._cost / self.ongoing) / 2
            return self._cost * self._many.each(untold)
        if not self._few.done:
            return 0.0
        stalled_s = self._few_s - self._ended_s
        return max(1.0, self._cost / self._full) * max(stalled_s, self._few.each())

    def _pass(self, now: float) -> None:
        passed = now - self._seen_s
        # Time without work is not slowness: it neither counts nor makes the past older.
        if self.ongoing and self._cost < self._full:
            self._few.forget(passed)
            self._few_s += passed
        elif self.ongoing:
            self._many.forget(passed)
            self._many.spent_s += passed
        self._seen_s = now


@dataclass(frozen=True)
class Begun:
    """A request that is ongoing."""

    cost: float
    few_s: float


class _Late:
    """What was done of late, and the seconds spent on it."""

    done = 0.0
    spent_s = 0.0

    def forget(self, passed_s: float) -> None:
        kept = math.exp(-passed_s / MEMORY_S)
        self.done *= kept
        self.spent_s *= kept

    def each(self, untold: float = 0.0) -> float:
        return self.spent_s / (self.done + untold)


class Replicas:
    """An encoder's replicas, as Serve knows them in this process.

    Args:
        router: Serve's own for the encoder's handle.
    """

    here: ClassVar[dict[str, "Replicas"]] = {}  # by encoder

    def __init__(self, router: Any):
        self._router = router

    def ready(self) -> int:
        return len(self._router.curr_replicas)

    def ongoing(self) -> int:
        """Requests in all of them, other routers' too, as far as Serve knows here."""
        queues = self._router.replica_queue_len_cache
        return sum(queues.get(replica) or 0 for replica in list(self._router.curr_replicas))
