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
        heavy_clock_s, seconds_per_cost: the same of its heavy clock and of the seconds of that
            clock for each unit of ongoing cost.
    """

    cost: float
    light_clock_s: float
    heavy_clock_s: float
    seconds_per_cost: float


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
        self._heavy_clock_s = 0.0  # runs under heavy load only
        # Decayed as the throughput is: what one unit of ongoing cost had of the heavy seconds.
        self._seconds_per_cost = 0.0
        self._now_s = 0.0

    def start(self, cost: float, now: float) -> RunningRequest:
        """Record that a request was sent."""
        self._advance(now)
        self.ongoing += 1
        self._ongoing_cost += cost
        return RunningRequest(
            cost, self._light_clock_s, self._heavy_clock_s, self._seconds_per_cost
        )

    def finish(self, request: RunningRequest, now: float, *, completed: bool) -> None:
        """Record that a request ended. An abandoned one (`completed` is False) says nothing about
        speed: its share of the seconds under heavy load, by cost, is not counted either.
        """
        self._advance(now)
        if completed and self._is_light():
            self._latency.amount += 1
            self._latency.seconds += self._light_clock_s - request.light_clock_s
        elif completed:
            self._throughput.amount += request.cost
        else:
            weight = decay(self._heavy_clock_s - request.heavy_clock_s)
            share = self._seconds_per_cost - weight * request.seconds_per_cost
            seconds = self._throughput.seconds - share * request.cost
            self._throughput.seconds = max(0.0, seconds)  # rounding
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
            self._latency.age(elapsed_s)
            self._light_clock_s += elapsed_s
        elif self.ongoing:
            self._throughput.age(elapsed_s)
            self._throughput.seconds += elapsed_s
            self._heavy_clock_s += elapsed_s
            self._seconds_per_cost *= decay(elapsed_s)
            self._seconds_per_cost += elapsed_s / self._ongoing_cost
        self._now_s = now


def decay(elapsed_s: float) -> float:
    """The weight of a measurement after so many seconds."""
    return math.exp(-elapsed_s / MEMORY_S)


class DecayedRate:
    """An amount and the seconds spent on it, both with exponential decay."""

    amount = 0.0
    seconds = 0.0

    def age(self, elapsed_s: float) -> None:
        """Reduce the weight of everything before now."""
        weight = decay(elapsed_s)
        self.amount *= weight
        self.seconds *= weight

    def seconds_per_unit(self, unreported: float = 0.0) -> float:
        """Seconds for one unit, with `unreported` more units done in the same time."""
        return self.seconds / (self.amount + unreported)
