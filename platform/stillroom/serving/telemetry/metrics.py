"""What the router counts, in Prometheus' words.

Each router process has its own registry, and a load balancer before several lets a scrape reach
now one, now another. So every series says which router counted it: add up over `router`.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stillroom.serving.messages import Encoded, Load

if TYPE_CHECKING:
    from opentelemetry.trace import Span


__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "Seen"]

# Seconds: from a query on a warm student to a thousand documents on a busy teacher.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# A phase is often shorter than the shortest request.
PHASE_BUCKETS = (0.0005, 0.001, 0.0025, *BUCKETS)

FORWARD_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass
class Seen:
    """What is known of a request when it is counted; "none" until a name is found to be ours."""

    model: str = "none"  # the encoder that answered
    policy: str = "none"
    why: str | None = None  # that encoder and no other
    client: str = "none"
    bytes_in: int = 0
    texts: int = 0
    tokens: int = 0
    padded_tokens: int | None = None
    batch_texts: float | None = None
    phases: dict[str, float] = field(default_factory=dict)  # seconds
    span: "Span | None" = None  # of OpenTelemetry, where that is on

    def encoded(self, encoded: Encoded, sent_s: float) -> None:
        """Note a replica's answer that took `sent_s` seconds, there and back."""
        self.texts, self.tokens = len(encoded.vectors), encoded.tokens
        self.padded_tokens, self.batch_texts = encoded.padded_tokens, encoded.batch_texts
        there = {
            "tokenise": encoded.tokenise_s,
            "wait": encoded.wait_s,
            "encode": encoded.encode_s,
        }
        self.phases = {phase: seconds for phase, seconds in there.items() if seconds is not None}
        # What is left: the hop, Ray's queues, and the arrays' way back.
        self.phases["send"] = max(0.0, sent_s - sum(self.phases.values()))


class Metrics:
    """Counters of one router. Labels take known values only; what a client invents is "none"."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "stillroom_requests",
            "Requests answered; 499: the client left first",
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
        self._phases = Histogram(
            "stillroom_phase_seconds",
            "Where an encoding request's time went: tokenise, wait, encode (in the replica), send",
            ["model", "phase"],
            buckets=PHASE_BUCKETS,
            registry=self.registry,
        )
        self._sent = Counter(
            "stillroom_sent",
            "Requests sent to an encoder, and why to that one",
            ["model", "why"],
            registry=self.registry,
        )
        self._padded = Counter(
            "stillroom_padded_tokens",
            "Tokens encoded, padding counted",
            ["model"],
            registry=self.registry,
        )
        self._batch = Histogram(
            "stillroom_batch_texts",
            "Texts in the forwards of a request, other requests' too, on average",
            ["model"],
            buckets=FORWARD_TEXTS,
            registry=self.registry,
        )
        self._load = {
            name: Gauge(f"stillroom_{name}", about, ["model"], registry=self.registry)
            for name, about in (
                ("ready_replicas", "Replicas that run"),
                ("ongoing_requests", "Requests that they have, or that wait for them"),
                ("expected_wait_seconds", "Until all of those are done, by the pace of late"),
            )
        }
        self._texts = Counter(
            "stillroom_texts", "Texts encoded", ["model", "client"], registry=self.registry
        )
        self._tokens = Counter(
            "stillroom_tokens", "Tokens encoded", ["model", "client"], registry=self.registry
        )

    def answered(self, route: str, seen: Seen, status: int, seconds: float) -> None:
        self._requests.labels(route, seen.model, seen.policy, str(status)).inc()
        self._seconds.labels(route, seen.model, seen.policy).observe(seconds)
        if seen.texts:
            self._texts.labels(seen.model, seen.client).inc(seen.texts)
            self._tokens.labels(seen.model, seen.client).inc(seen.tokens)
        if seen.why is not None:
            self._sent.labels(seen.model, seen.why).inc()
        if seen.padded_tokens is not None:
            self._padded.labels(seen.model).inc(seen.padded_tokens)
        if seen.batch_texts is not None:
            self._batch.labels(seen.model).observe(seen.batch_texts)
        for phase, took in seen.phases.items():
            self._phases.labels(seen.model, phase).observe(took)

    def render(self, load: Mapping[str, Load]) -> bytes:
        """The text that GET /metrics answers with, while the encoders are so busy."""
        for model, now in load.items():
            self._load["ready_replicas"].labels(model).set(now.ready)
            self._load["ongoing_requests"].labels(model).set(now.ongoing)
            self._load["expected_wait_seconds"].labels(model).set(now.wait_s)
        return generate_latest(_OfRouter(self.registry, f"{socket.gethostname()}:{os.getpid()}"))


class _OfRouter(CollectorRegistry):
    """A registry's series with the router's name on each."""

    def __init__(self, registry: CollectorRegistry, router: str):
        super().__init__()
        self._of, self._router = registry, router

    def collect(self) -> Iterator[Metric]:
        for metric in self._of.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "router": self._router})
                for sample in metric.samples
            ]
            yield metric
