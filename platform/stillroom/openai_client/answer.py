"""What a language model answers, as OpenAI's schema has it. No Ray."""

import json
from dataclasses import dataclass

from stillroom.openai_client.client import Request, Usage, token_estimate


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        refused: the status with which the endpoint would not answer this very request; None
            where it did.
        cut: whether the text ends because the limit of tokens was reached.
        tokens, logprobs: of an echoed prompt; None where the endpoint does not tell.
        usage: as the endpoint counts, or estimated where it does not.
    """

    text: str
    refused: int | None
    cut: bool
    tokens: list[str] | None
    logprobs: list[float | None] | None
    usage: Usage

    @staticmethod
    def read(content: str, request: Request) -> "Answer":
        """Of a response's body as `Client.ask` returns it.

        Raises:
            ValueError, KeyError, TypeError, IndexError: when it follows no schema of OpenAI's.
        """
        body = json.loads(content)
        if "refused" in body:
            return Answer("", int(body["refused"]), False, None, None, Usage())
        choice = body["choices"][0]
        chat = request.route == "chat/completions"
        text = choice["message"].get("content") if chat else choice["text"]
        text = text if isinstance(text, str) else ""  # null, of a model that only thought
        told = choice.get("logprobs") or {}
        tokens, logprobs = told.get("tokens"), told.get("token_logprobs")
        if not (isinstance(tokens, list) and isinstance(logprobs, list)):
            tokens = logprobs = None
        usage = body.get("usage") or {}
        if usage.get("prompt_tokens") is None:
            counted = Usage(token_estimate(request.body), token_estimate(text))
        else:
            counted = Usage(int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0))
        return Answer(
            text, None, choice.get("finish_reason") == "length", tokens, logprobs, counted
        )
