"""What the router counts, in Prometheus' words.

Each router process has its own registry: with several routers, scrape each and add up.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

# Seconds: from a query on a warm student to a thousand documents on a busy teacher.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one router. Labels take known values only; what a client invents is "none"."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "stillroom_requests",
            "Requests answered",
            ["route", "model", "policy", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "stillroom_request_seconds",
            "Time from the request's arrival to its answer",
            ["route", "model", "policy"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._texts = Counter(
            "stillroom_texts", "Texts encoded", ["model", "client"], registry=self.registry
        )
        self._tokens = Counter(
            "stillroom_tokens", "Tokens encoded", ["model", "client"], registry=self.registry
        )

    def answered(self, route: str, model: str, policy: str, status: int, seconds: float) -> None:
        self._requests.labels(route, model, policy, str(status)).inc()
        self._seconds.labels(route, model, policy).observe(seconds)

    def encoded(self, model: str, client: str, texts: int, tokens: int) -> None:
        self._texts.labels(model, client).inc(texts)
        self._tokens.labels(model, client).inc(tokens)

    def render(self) -> bytes:
        """The text that GET /metrics answers with."""
        return generate_latest(self.registry)
