"""A language model's answer, parsed from a response in OpenAI's schema."""

import json
from dataclasses import dataclass

from stillroom.openai_client.requests import Request, Usage, estimate_text_tokens


@dataclass(frozen=True)
class Completion:
    """A parsed response.

    Attributes:
        text: the answer; empty if the request was refused.
        refused: the HTTP status with which the endpoint refused the request; else None.
        truncated: whether the text ends because the token limit was reached.
        tokens, logprobs: of an echoed prompt; None if the endpoint does not give them.
        usage: as the endpoint counts it, or else estimated.
    """

    text: str
    refused: int | None
    truncated: bool
    tokens: list[str] | None
    logprobs: list[float | None] | None
    usage: Usage

    @staticmethod
    def parse(content: str, request: Request) -> "Completion":
        """Parses what `OpenAIClient.send` returns.

        Raises:
            ValueError, KeyError, TypeError, IndexError: when it does not follow OpenAI's schema.
        """
        body = json.loads(content)
        if "refused" in body:
            return Completion("", int(body["refused"]), False, None, None, Usage())
        choice = body["choices"][0]
        is_chat = request.route == "chat/completions"
        text = choice["message"].get("content") if is_chat else choice["text"]
        text = text if isinstance(text, str) else ""  # null if a model only reasoned
        probabilities = choice.get("logprobs") or {}
        tokens, logprobs = probabilities.get("tokens"), probabilities.get("token_logprobs")
        if not (isinstance(tokens, list) and isinstance(logprobs, list)):
            tokens = logprobs = None
        counts = body.get("usage") or {}
        if counts.get("prompt_tokens") is None:
            usage = Usage(estimate_text_tokens(request.body), estimate_text_tokens(text))
        else:
            usage = Usage(int(counts["prompt_tokens"]), int(counts.get("completion_tokens") or 0))
        truncated = choice.get("finish_reason") == "length"
        return Completion(text, None, truncated, tokens, logprobs, usage)
