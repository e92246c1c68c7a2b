"""What the router counts, in Prometheus' words.

Each router process has its own registry: with several routers, scrape each and add up.
"""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from stillroom.serving.request import Encoded

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "Seen"]

# Seconds: from a query on a warm student to a thousand documents on a busy teacher.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# A phase is often shorter than the shortest request.
PHASE_BUCKETS = (0.0005, 0.001, 0.0025, *BUCKETS)


@dataclass
class Seen:
    """What is known of a request when it is counted; "none" until a name is found to be ours."""

    model: str = "none"  # the encoder that answered
    policy: str = "none"
    client: str = "none"
    bytes_in: int = 0
    texts: int = 0
    tokens: int = 0
    phases: dict[str, float] = field(default_factory=dict)  # seconds

    def encoded(self, encoded: Encoded, sent_s: float) -> None:
        """Note a replica's answer that took `sent_s` seconds, there and back."""
        self.texts, self.tokens = len(encoded.vectors), encoded.tokens
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
        for phase, took in seen.phases.items():
            self._phases.labels(seen.model, phase).observe(took)

    def render(self) -> bytes:
        """The text that GET /metrics answers with."""
        return generate_latest(self.registry)
