"""Kinds of errors become statuses and bodies in one table."""

import json

import pytest

from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.errors import HTTP_ERRORS, error_response


@pytest.mark.parametrize(
    ("kind", "openai", "tei"),
    [
        (ErrorKind.INVALID, (400, "invalid_request_error", "invalid_value"), (422, "Tokenizer")),
        (
            ErrorKind.UNAUTHORIZED,
            (401, "authentication_error", "invalid_api_key"),
            (401, "Validation"),
        ),
        (
            ErrorKind.NOT_FOUND,
            (404, "invalid_request_error", "model_not_found"),
            (404, "Validation"),
        ),
        (
            ErrorKind.TOO_SLOW,
            (408, "invalid_request_error", "request_timeout"),
            (408, "Validation"),
        ),
        (
            ErrorKind.TOO_LARGE,
            (413, "invalid_request_error", "request_too_large"),
            (413, "Validation"),
        ),
        (
            ErrorKind.UNSUPPORTED_ENCODING,
            (415, "invalid_request_error", "unsupported_encoding"),
            (415, "Validation"),
        ),
        (ErrorKind.UNSUPPORTED_OUTPUT, (424, "invalid_request_error", None), (424, "Backend")),
        (
            ErrorKind.OVERLOADED,
            (429, "rate_limit_error", "rate_limit_exceeded"),
            (429, "Overloaded"),
        ),
        (ErrorKind.INTERNAL, (500, "server_error", None), (500, "Unhealthy")),
        (ErrorKind.UNAVAILABLE, (503, "server_error", "overloaded"), (503, "Unhealthy")),
    ],
)
def test_every_kind_of_error_has_a_status_and_a_body_in_both_protocols(kind, openai, tei):
    error = ServingError(kind, "try less", "input", retry_after_s=7)
    answer = error_response("openai", error)
    body = json.loads(answer.body)["error"]
    assert (answer.status_code, body["type"], body["code"]) == openai
    assert (body["message"], body["param"]) == ("try less", "input")
    assert answer.headers["retry-after"] == "7"
    assert ("www-authenticate" in answer.headers) is (kind is ErrorKind.UNAUTHORIZED)
    answer = error_response("tei", error)
    assert (answer.status_code, json.loads(answer.body)["error_type"]) == tei
    assert answer.headers["retry-after"] == "7"


def test_no_kind_of_error_is_missing_from_the_table():
    assert HTTP_ERRORS.keys() == set(ErrorKind)


def test_an_error_may_override_the_code_of_its_kind():
    error = ServingError(ErrorKind.INVALID, "what?", code="invalid_json")
    body = json.loads(error_response("openai", error).body)
    assert body["error"]["code"] == "invalid_json"
