"""How long an encoder's requests wait, estimated from recent starts and ends: no Ray, no clock."""

import math
from dataclasses import dataclass

MEMORY_S = 10.0  # the estimate forgets with this time constant, in seconds with work


@dataclass(frozen=True)
class RunningRequest:
    """A request that has started and not finished.

    Attributes:
        cost: as given to `WaitEstimator.start`.
        light_clock_s: the estimator's light clock when the request started.
    """

    cost: float
    light_clock_s: float


class WaitEstimator:
    """Expected wait at one encoder, from the requests that one router sends to it.

    Light load, less ongoing than fills a forward: a request takes about the same time at any cost,
    so lone queries say nothing about throughput. Heavy load: work is done at a rate, so the wait is
    all ongoing cost at that rate. Each of the two is measured only while it lasts.

    Costs are in any one unit, here characters. Times are seconds of one monotonic clock.

    Args:
        full_batch_cost: cost that fills a forward.
    """

    def __init__(self, full_batch_cost: float) -> None:
        self.ongoing = 0
        self._ongoing_cost = 0.0
        self._full_batch_cost = full_batch_cost
        self._light_clock_s = 0.0  # runs under light load only
        self._last_finish_s = 0.0  # the light clock when a request last finished
        self._latency = DecayedRate()  # light load: finished requests, their summed light seconds
        self._throughput = DecayedRate()  # heavy load: finished cost, seconds
        self._now_s = 0.0

    def start(self, cost: float, now: float) -> RunningRequest:
        """Record that a request was sent."""
        self._advance(now)
        self.ongoing += 1
        self._ongoing_cost += cost
        return RunningRequest(cost, self._light_clock_s)

    def finish(self, request: RunningRequest, now: float, *, completed: bool) -> None:
        """Record that a request ended. An abandoned one (`completed` is False) says nothing about
        speed.
        """
        self._advance(now)
        if completed and self._is_light():
            self._latency.amount += 1
            self._latency.seconds += self._light_clock_s - request.light_clock_s
        elif completed:
            self._throughput.amount += request.cost
        self.ongoing -= 1
        self._ongoing_cost = self._ongoing_cost - request.cost if self.ongoing else 0.0
        self._last_finish_s = self._light_clock_s

    def wait_s(self, now: float) -> float:
        """Seconds until all ongoing requests are done; 0 until a first request has finished."""
        self._advance(now)
        if not self.ongoing:
            return 0.0
        if not self._is_light() and self._throughput.amount:
            # Requests that shared a forward are reported one after the other. On average, half of
            # the others' cost is done and not reported yet.
            mean_cost = self._ongoing_cost / self.ongoing
            unreported = max(0.0, self._full_batch_cost - mean_cost) / 2
            return self._ongoing_cost * self._throughput.seconds_per_unit(unreported)
        if not self._latency.amount:
            return 0.0
        stalled_s = self._light_clock_s - self._last_finish_s
        forwards = max(1.0, self._ongoing_cost / self._full_batch_cost)
        return forwards * max(stalled_s, self._latency.seconds_per_unit())

    def _is_light(self) -> bool:
        return self._ongoing_cost < self._full_batch_cost

    def _advance(self, now: float) -> None:
        elapsed_s = now - self._now_s
        # Time without work is not slowness: it is not counted and does not age measurements.
        if self.ongoing and self._is_light():
            self._latency.decay(elapsed_s)
            self._light_clock_s += elapsed_s
        elif self.ongoing:
            self._throughput.decay(elapsed_s)
            self._throughput.seconds += elapsed_s
        self._now_s = now


class DecayedRate:
    """An amount and the seconds spent on it, both with exponential decay."""

    amount = 0.0
    seconds = 0.0

    def decay(self, elapsed_s: float) -> None:
        """Reduce the weight of everything before now."""
        weight = math.exp(-elapsed_s / MEMORY_S)
        self.amount *= weight
        self.seconds *= weight

    def seconds_per_unit(self, unreported: float = 0.0) -> float:
        """Seconds for one unit, with `unreported` more units done in the same time."""
        return self.seconds / (self.amount + unreported)
