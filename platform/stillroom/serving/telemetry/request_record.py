"""Facts about one request, for metrics, the access log and traces."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stillroom.serving.messages import EncodeResult

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@dataclass
class RequestRecord:
    """Filled in while a request is answered. Names are "none" until they are known to be ours.

    Attributes:
        model: the encoder that answered.
        reason: why this encoder was chosen.
        client: the name of the API key.
        phases: phase → seconds.
        span: OpenTelemetry's, where that is on.
    """

    model: str = "none"
    policy: str = "none"
    reason: str | None = None
    client: str = "none"
    bytes_in: int = 0
    texts: int = 0
    tokens: int = 0
    unknown_tokens: int | None = None
    padded_tokens: int | None = None
    batch_texts: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    span: "Span | None" = None

    def add_result(self, result: EncodeResult, round_trip_s: float) -> None:
        """Add what a replica reported, whose answer took `round_trip_s` seconds."""
        self.texts, self.tokens = len(result.vectors), result.tokens
        self.unknown_tokens = result.unknown_tokens
        self.padded_tokens, self.batch_texts = result.padded_tokens, result.batch_texts
        in_replica = {
            "tokenise": result.tokenise_s,
            "wait": result.wait_s,
            "encode": result.encode_s,
        }
        self.phases = {
            phase: seconds for phase, seconds in in_replica.items() if seconds is not None
        }
        # The rest: sending the message, Ray's queues, and returning the vectors.
        self.phases["send"] = max(0.0, round_trip_s - sum(self.phases.values()))
