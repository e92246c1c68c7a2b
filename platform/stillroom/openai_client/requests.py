"""Requests to an OpenAI-compatible endpoint, and their cost."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UTF8_BYTES_PER_TOKEN = 3  # English has about 4, Chinese 3, and few texts have fewer


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        route: `chat/completions`, `completions` or `embeddings`.
        body: the JSON to send, as text: it is part of the request's key.
        sample: number of this request among several with the same body.
    """

    route: str
    body: str
    sample: int = 0

    @property
    def key(self) -> str:
        """The key of its cached response.

        It does not contain the endpoint's address: the same model gives the same answers elsewhere.
        """
        return hashlib.sha256(f"{self.route}\n{self.sample}\n{self.body}".encode()).hexdigest()

    @staticmethod
    def create(route: str, body: Mapping[str, Any], sample: int = 0) -> "Request":
        """A request whose body is always the same text for equal fields."""
        text = json.dumps(body, sort_keys=True, ensure_ascii=False)
        # Broken texts may have lone surrogates, which have no UTF-8 form.
        return Request(route, text.encode("utf-8", "replace").decode(), sample)


@dataclass(frozen=True)
class Usage:
    """Tokens that were paid for."""

    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out)

    def __mul__(self, count: int) -> "Usage":
        return Usage(self.tokens_in * count, self.tokens_out * count)

    def cost(self, price_in: float, price_out: float) -> float:
        """The cost at prices per million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def estimate_text_tokens(text: str) -> int:
    """The tokens of a text, estimated on the high side."""
    return math.ceil(len(text.encode("utf-8", "replace")) / UTF8_BYTES_PER_TOKEN)


def affordable_calls(
    spent: Usage,
    per_call: Usage,
    *,
    tokens: int | None,
    cost: float | None,
    price_in: float,
    price_out: float,
) -> float:
    """How many more calls a budget pays for; inf without a budget.

    Args:
        spent: the usage so far.
        per_call: the maximum usage of a call.
        tokens, cost: the budget, each None for no limit; the lower of both counts.
        price_in, price_out: per million tokens.
    """
    calls = math.inf
    if tokens is not None:
        tokens_left = tokens - spent.tokens_in - spent.tokens_out
        calls = min(calls, tokens_left // max(1, per_call.tokens_in + per_call.tokens_out))
    if cost is not None:
        call_cost = per_call.cost(price_in, price_out)
        if call_cost > 0:
            cost_left = cost - spent.cost(price_in, price_out)
            # A sum of decimals is not exact: 0.3 must pay for three calls of 0.1.
            calls = min(calls, math.floor(cost_left / call_cost + 1e-9))
    return max(0, calls)
