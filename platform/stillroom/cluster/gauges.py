"""Ray's gauges, repeated so that a cluster's Prometheus keeps them."""

import functools
import threading
from collections.abc import Mapping

from ray.util.metrics import Gauge

REPEAT_S = 5.0  # Ray drops a gauge that was not set for twice its report interval, 20 s


class Gauges:
    """Gauges `{prefix}_{name}` of Ray's metrics, set again every `REPEAT_S` until closed.

    Ray drops gauges that are not set for a while. A step may take longer than that, and a hanging
    process should stay visible.
    """

    def __init__(self, prefix: str, tags: Mapping[str, str]):
        self.prefix, self.tags = prefix, dict(tags)
        self.values: dict[str, float] = {}
        self.closed = threading.Event()
        threading.Thread(target=self._repeat, name=prefix, daemon=True).start()

    def set(self, name: str, value: float) -> None:
        self.values[name] = value
        _gauge(f"{self.prefix}_{name}", tuple(self.tags)).set(value, self.tags)

    def close(self) -> None:
        self.closed.set()

    def _repeat(self) -> None:
        while not self.closed.wait(REPEAT_S):
            for name, value in list(self.values.items()):
                self.set(name, value)


@functools.cache
def _gauge(name: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(name, tag_keys=tags)
