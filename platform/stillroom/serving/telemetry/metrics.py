"""The router's Prometheus metrics.

Each router process has its own registry, and behind a load balancer every scrape may reach another
router. So each series has a label `router`: sum over it.
"""

import os
import socket
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stillroom.serving.messages import EncoderLoad
from stillroom.serving.telemetry.request_record import RequestRecord

__all__ = ["CONTENT_TYPE_LATEST", "RouterMetrics"]

# Seconds: from a query to a warm student to a thousand documents at a busy teacher.
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# A phase is often shorter than the shortest request.
PHASE_BUCKETS = (0.0005, 0.001, 0.0025, *REQUEST_BUCKETS)

BATCH_TEXTS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class RouterMetrics:
    """Metrics of one router. Labels have known values only: a name that is not served is "none"."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "stillroom_requests",
            "Requests answered; status 499: the client left before the answer",
            ["route", "model", "policy", "status"],
        )
        self._seconds = self._histogram(
            "stillroom_request_seconds",
            "Time from a request's arrival to its answer",
            ["route", "model", "policy"],
            REQUEST_BUCKETS,
        )
        self._phase_seconds = self._histogram(
            "stillroom_request_phase_seconds",
            "Time by phase: tokenise, wait and encode (in the replica), send (outside of it)",
            ["model", "phase"],
            PHASE_BUCKETS,
        )
        self._routed = self._counter(
            "stillroom_routed_requests",
            "Requests sent to an encoder, and the reason for that encoder",
            ["model", "reason"],
        )
        self._texts = self._counter("stillroom_texts", "Texts encoded", ["model", "client"])
        self._tokens = self._counter("stillroom_tokens", "Tokens encoded", ["model", "client"])
        self._unknown_tokens = self._counter(
            "stillroom_unknown_tokens",
            "Tokens encoded that stand for what the tokenizer does not know",
            ["model", "client"],
        )
        self._padded_tokens = self._counter(
            "stillroom_padded_tokens", "Tokens encoded, padding included", ["model"]
        )
        self._batch_texts = self._histogram(
            "stillroom_batch_texts",
            "Texts in the forwards of a request, other requests' too, on average",
            ["model"],
            BATCH_TEXTS_BUCKETS,
        )
        self._ready_replicas = self._gauge("stillroom_ready_replicas", "Running replicas")
        self._ongoing_requests = self._gauge(
            "stillroom_ongoing_requests", "Requests that replicas have, or that wait for a replica"
        )
        self._expected_wait = self._gauge(
            "stillroom_expected_wait_seconds",
            "Time until all ongoing requests are done, at the recent pace",
        )

    def _counter(self, name: str, about: str, labels: list[str]) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, ["model"], registry=self.registry)

    def _histogram(
        self, name: str, about: str, labels: list[str], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, about, labels, buckets=buckets, registry=self.registry)

    def count_request(self, route: str, record: RequestRecord, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        model = record.model
        self._requests.labels(route, model, record.policy, str(status)).inc()
        self._seconds.labels(route, model, record.policy).observe(seconds)
        if record.texts:
            self._texts.labels(model, record.client).inc(record.texts)
            self._tokens.labels(model, record.client).inc(record.tokens)
        if record.reason is not None:
            self._routed.labels(model, record.reason).inc()
        if record.unknown_tokens is not None:
            self._unknown_tokens.labels(model, record.client).inc(record.unknown_tokens)
        if record.padded_tokens is not None:
            self._padded_tokens.labels(model).inc(record.padded_tokens)
        if record.batch_texts is not None:
            self._batch_texts.labels(model).observe(record.batch_texts)
        for phase, phase_seconds in record.phases.items():
            self._phase_seconds.labels(model, phase).observe(phase_seconds)

    def render(self, loads: Mapping[str, EncoderLoad]) -> bytes:
        """The body of GET /metrics, with the encoders' loads as they are now."""
        for model, load in loads.items():
            self._ready_replicas.labels(model).set(load.ready)
            self._ongoing_requests.labels(model).set(load.ongoing)
            self._expected_wait.labels(model).set(load.wait_s)
        router = f"{socket.gethostname()}:{os.getpid()}"
        return generate_latest(_WithRouterLabel(self.registry, router))


class _WithRouterLabel(CollectorRegistry):
    """A registry's series, each with the router's name as a label."""

    def __init__(self, registry: CollectorRegistry, router: str):
        super().__init__()
        self._registry, self._router = registry, router

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "router": self._router})
                for sample in metric.samples
            ]
            yield metric
