"""TODO docstring: serving/service.py."""

from dataclasses import dataclass

from stillroom.serving.messages import Encoded


@dataclass(frozen=True)
class Answer:
    """A replica's vectors, and who made them."""

    encoded: Encoded
    model: str  # the encoder

    def headers(self) -> dict[str, str]:
        return {
            "x-stillroom-model": self.model,
            "x-stillroom-space": self.encoded.space,
            "x-stillroom-release": self.encoded.release,
        }
