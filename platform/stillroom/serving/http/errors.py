"""Errors as HTTP answers: one table of statuses, and the bodies of two protocols.

The protocols are OpenAI's and that of text-embeddings-inference (TEI).
"""

from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import JSONResponse

from stillroom.serving.errors import ErrorKind, ServingError

ErrorFormat = Literal["openai", "tei"]


@dataclass(frozen=True)
class HttpError:
    """The HTTP response to one kind of error.

    Attributes:
        type, code: of OpenAI's body. Its clients choose their exception by the status.
        tei_type: of TEI's body.
        tei_status: where TEI has another one.
    """

    status: int
    type: str
    code: str | None
    tei_type: str
    tei_status: int | None = None


HTTP_ERRORS = {
    # TEI has no 400: unreadable or unsupported input is 422.
    ErrorKind.INVALID: HttpError(400, "invalid_request_error", "invalid_value", "Tokenizer", 422),
    ErrorKind.UNAUTHORIZED: HttpError(401, "authentication_error", "invalid_api_key", "Validation"),
    ErrorKind.NOT_FOUND: HttpError(404, "invalid_request_error", "model_not_found", "Validation"),
    ErrorKind.TOO_SLOW: HttpError(408, "invalid_request_error", "request_timeout", "Validation"),
    ErrorKind.TOO_LARGE: HttpError(413, "invalid_request_error", "request_too_large", "Validation"),
    ErrorKind.UNSUPPORTED_ENCODING: HttpError(
        415, "invalid_request_error", "unsupported_encoding", "Validation"
    ),
    ErrorKind.UNSUPPORTED_OUTPUT: HttpError(424, "invalid_request_error", None, "Backend"),
    ErrorKind.OVERLOADED: HttpError(429, "rate_limit_error", "rate_limit_exceeded", "Overloaded"),
    ErrorKind.INTERNAL: HttpError(500, "server_error", None, "Unhealthy"),
    ErrorKind.UNAVAILABLE: HttpError(503, "server_error", "overloaded", "Unhealthy"),
}
TEI_ONLY = {ErrorKind.UNSUPPORTED_OUTPUT}  # only a TEI route uses it


def statuses(error_format: ErrorFormat) -> tuple[int, ...]:
    """The statuses other than 200 that routes of a format may answer with, in order."""
    if error_format == "tei":
        return tuple(sorted(error.tei_status or error.status for error in HTTP_ERRORS.values()))
    return tuple(error.status for kind, error in HTTP_ERRORS.items() if kind not in TEI_ONLY)


def error_response(error_format: ErrorFormat, error: ServingError) -> JSONResponse:
    """The whole response to a refused request: status, headers and body."""
    http = HTTP_ERRORS[error.kind]
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.kind is ErrorKind.TOO_SLOW:
        headers["Connection"] = "close"  # the rest of the body may never come
    if error.kind is ErrorKind.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error_format == "tei":
        tei_body = {"error": error.message, "error_type": http.tei_type}
        return JSONResponse(tei_body, http.tei_status or http.status, headers)
    body = _openai_body(error.message, http.type, error.param, error.code or http.code)
    return JSONResponse(body, http.status, headers)


def unknown_url_response(status: int, message: str) -> JSONResponse:
    """The response when no route matches: Starlette's 404 or 405 with a body like OpenAI's."""
    body = _openai_body(message, "invalid_request_error", None, "unknown_url")
    return JSONResponse(body, status)


def _openai_body(
    message: str, error_type: str, param: str | None, code: str | None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}
