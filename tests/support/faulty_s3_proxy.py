"""A proxy in front of an S3 server that fails in the ways that real storage does."""

import http.client
import io
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

BODY_HEADERS = {"transfer-encoding", "content-length", "expect"}
CHECKSUM_HEADERS = {
    "content-encoding", "x-amz-trailer", "x-amz-decoded-content-length", "x-amz-content-sha256",
}  # fmt: skip


class FaultyProxy:
    """Forwards requests, except for those that `fails` or `cuts` select.

    Args:
        upstream: URL of the S3 server.

    Attributes:
        fails: (method, path) → whether the request is answered with 503.
        cuts: (method, path) → whether the last byte of the body is lost.
    """

    def __init__(self, upstream: str):
        self.upstream = urlsplit(upstream).netloc
        self.fails: Callable[[str, str], bool] = lambda method, path: False
        self.cuts: Callable[[str, str], bool] = lambda method, path: False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *args) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        chunked = request.headers.get("Transfer-Encoding") == "chunked"
        length = int(request.headers.get("Content-Length", 0))
        body = unchunked(request.rfile) if chunked else request.rfile.read(length)
        method_and_path = request.command, request.path
        if self.fails(*method_and_path):
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        headers = {n: v for n, v in request.headers.items() if n.lower() not in BODY_HEADERS}
        if self.cuts(*method_and_path):
            # Amazon's client chunks the body a second time, with a checksum at the end.
            body = unchunked(io.BytesIO(body))[:-1]
            headers = {n: v for n, v in headers.items() if n.lower() not in CHECKSUM_HEADERS}
        connection = http.client.HTTPConnection(self.upstream)
        connection.request(request.command, request.path, body, headers)
        with connection.getresponse() as response:
            content = response.read()
            request.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    request.send_header(name, value)
            length = response.getheader("Content-Length") if request.command == "HEAD" else None
            request.send_header("Content-Length", length or str(len(content)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)
        connection.close()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def unchunked(stream: Any) -> bytes:
    """The content of a body with chunked transfer encoding."""
    parts = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():  # trailers
        pass
    return b"".join(parts)


class FirstRequests:
    """True for the first requests that match: `FirstRequests(3, "PUT", "one.txt")`."""

    def __init__(self, count: int, method: str, path: str = ""):
        self.left, self.method, self.path = count, method, path
        self.lock = threading.Lock()

    def __call__(self, method: str, path: str) -> bool:
        with self.lock:
            hit = self.left > 0 and method == self.method and self.path in path
            self.left -= hit
        return hit
