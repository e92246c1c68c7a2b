"""How busy an encoder is, from what was begun and done and what Serve knows: no Ray, no clock."""

import math
from typing import Any, ClassVar

MEMORY_S = 10.0  # how much of the past the pace remembers, in seconds with work


class Meter:
    """The pace of one encoder as one router sees it.

    Costs are in any one unit, here characters: what n requests cost together decides how long
    they take, in whatever batches. Times are seconds of one clock that never goes back.
    """

    def __init__(self) -> None:
        self.ongoing = 0
        self._cost = 0.0  # of what is ongoing
        self._done = 0.0  # cost done, of late …
        self._busy_s = 0.0  # … and the time with work that it took
        self._seen_s = 0.0

    def begin(self, cost: float, now: float) -> None:
        self._pass(now)
        self.ongoing += 1
        self._cost += cost

    def end(self, cost: float, now: float, *, done: bool) -> None:
        """`done` is False for what was given up: that says nothing of the pace."""
        self._pass(now)
        self.ongoing -= 1
        self._cost = self._cost - cost if self.ongoing else 0.0
        self._done += cost if done else 0.0

    def wait_s(self, now: float) -> float:
        """Until all that is ongoing is done; 0 while nothing was done yet, so no pace is known."""
        self._pass(now)
        return self._cost * self._busy_s / self._done if self._done and self.ongoing else 0.0

    def _pass(self, now: float) -> None:
        # Time without work is not slowness: it neither counts nor makes the past older.
        if self.ongoing:
            kept = math.exp(-(now - self._seen_s) / MEMORY_S)
            self._done *= kept
            self._busy_s = self._busy_s * kept + now - self._seen_s
        self._seen_s = now


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
