"""Answers other than 200; each protocol says them in words of its own."""

from typing import Any


class ApiError(Exception):
    """A request that is not served.

    Args:
        status: HTTP status.
        message: what went wrong and what to do, for the person who called.
        param: the request's field at fault.
        code: a stable word for programs, such as `model_not_found`.
        retry_after_s: seconds after which the same request may pass.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(status, message, param, code, retry_after_s)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def openai_body(error: ApiError) -> dict[str, Any]:
    """As OpenAI's clients read it; they choose their exception by the status."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    default = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": error.message,
            "type": kinds.get(error.status, default),
            "param": error.param,
            "code": error.code,
        }
    }


def tei_body(status: int, message: str) -> dict[str, str]:
    """As clients of text-embeddings-inference read it."""
    kinds = {413: "Validation", 422: "Tokenizer", 424: "Backend", 429: "Overloaded"}
    default = "Validation" if status < 500 else "Unhealthy"
    return {"error": message, "error_type": kinds.get(status, default)}
