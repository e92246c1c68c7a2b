"""Clients cannot give orders to Ray Serve's proxy by headers that only Serve reads."""

import pytest
from starlette.testclient import TestClient

from stillroom.serving.http.serve_headers import WithoutServeHeaders


def passed_on(name, value):
    """What of a header an application behind the middleware sees."""
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    TestClient(WithoutServeHeaders(app)).get("/", headers={name: value})
    return seen.get(name)


@pytest.mark.parametrize(
    "name",
    [
        b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"x-session-id",
        b"x-request-timeout-seconds", b"x-request-disconnect-disabled",
    ],
)  # fmt: skip
def test_orders_to_serve_are_taken_away(name):
    assert passed_on(name, b"1") is None


@pytest.mark.parametrize(
    ("value", "kept"),
    [(b"r-1", True), (b"", False), (b"\xff", False), (b"two words", False), (b"r" * 201, False)],
)
def test_a_request_s_id_is_short_and_readable_or_replaced(value, kept):
    assert passed_on(b"x-request-id", value) == (value if kept else None)


def test_other_headers_pass_whatever_they_are():
    assert passed_on(b"x-any", "é".encode()) == "é".encode()
