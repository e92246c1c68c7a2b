"""HTTP/1.1 on a public port: uvicorn's h11, with a deadline for all that a client may delay.

Bodies have their deadline where they are read (`body.py`), since only the application can answer.
"""

import asyncio
from typing import Literal

import h11
from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

from stillroom.serving.http.serve_headers import WithoutServeHeaders

# Where Ray Serve looks for a function to call before a proxy or a router listens.
SERVE_CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
SERVE_CALLBACK = "stillroom.serving.http.protocol:install"

HEAD_S = 15.0  # for the request line and headers, from the connection or from their first byte
UNREAD_BODY_S = 10.0  # after an early answer, such as 413, for the rest of the body
# For a client that reads nothing of its answer. The system's own buffers, of some MB, hide slow
# progress for a while: one that reads 100 kB/s must not seem to stand still.
STALLED_READ_S = 60.0

Waiting = Literal["head", "unread body"]
DEADLINES: dict[Waiting, float] = {"head": HEAD_S, "unread body": UNREAD_BODY_S}


def install() -> list[Middleware]:
    """Make servers that start in this process use the protocol below; the middleware before them.

    Ray Serve gives no way to choose uvicorn's protocol. Its default, httptools where that is
    installed, drops the body of a request that offers `Upgrade: h2c`, as Java's HttpClient and
    `curl --http2` do.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{DeadlineProtocol.__name__}"
    return [Middleware(WithoutServeHeaders)]


class DeadlineProtocol(H11Protocol):
    """One connection. It is closed when its client takes too long."""

    _waiting: Waiting | None = None
    _deadline: asyncio.TimerHandle | None = None
    _unread: int | None = None  # bytes of answers that the client had not read at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected, and should send a request."""
        super().connection_made(transport)
        self._update_deadline()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived; they may end a request's head or body."""
        super().data_received(data)
        self._update_deadline()

    def _should_upgrade(self) -> bool:
        """Offers of HTTP/2 and WebSockets are ignored; the request is answered as it is."""
        return False

    def on_response_complete(self) -> None:
        """An answer is written, perhaps before all of its request has arrived."""
        super().on_response_complete()
        self._update_deadline()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless an answer to what came before it has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whichever side."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def pause_writing(self) -> None:
        """More of an answer is unread than a socket holds."""
        super().pause_writing()
        self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        """No other request came; uvicorn closes when the client has read its last answer."""
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def _update_deadline(self) -> None:
        waiting: Waiting | None = None
        # An idle client is uvicorn's (keep-alive), until the first byte of another request.
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            waiting = "head"
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            waiting = "unread body"
        if waiting == self._waiting:
            return  # more bytes of the same are no reason to wait longer
        self._waiting = waiting
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if waiting is not None:
            self._deadline = self.loop.call_later(DEADLINES[waiting], self.transport.abort)

    def _watch_reader(self) -> None:
        if self._unread is None:
            self._unread = self.transport.get_write_buffer_size()
            self.loop.call_later(STALLED_READ_S, self._check_reader)

    def _check_reader(self) -> None:
        unread, before = self.transport.get_write_buffer_size(), self._unread
        self._unread = None
        if unread and unread == before:
            self.transport.abort()  # a mere close would wait for the client to read
        elif unread:
            self._watch_reader()
