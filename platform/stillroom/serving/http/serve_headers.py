"""Headers with which a client would give orders to Ray Serve's own proxy."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

# How long the proxy waits, that it shall not notice when the client leaves, and which replica to
# prefer. Serve takes hyphens and underscores alike, and answers 500 to bytes that are not UTF-8.
ORDERS = {
    b"serve-multiplexed-model-id",
    b"x-request-disconnect-disabled",
    b"x-request-timeout-seconds",
    b"x-session-id",
}
REQUEST_ID = re.compile(rb"[!-~]{1,200}")  # it is logged, and repeated in the answer


class WithoutServeHeaders:
    """ASGI middleware before Serve's proxy: takes such headers away, and ids that are no ids."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            headers = [header for header in scope["headers"] if _is_for_us(*header)]
            scope = {**scope, "headers": headers}
        await self.app(scope, receive, send)


def _is_for_us(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value) is not None
    return name.replace(b"_", b"-") not in ORDERS
