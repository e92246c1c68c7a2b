"""A proxy in front of an S3 server that fails as real ones do."""

import http.client
import io
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

OF_THE_BODY = {"transfer-encoding", "content-length", "expect"}
OF_THE_CHECKSUM = {
    "content-encoding", "x-amz-trailer", "x-amz-decoded-content-length", "x-amz-content-sha256",
}  # fmt: skip


class FaultyProxy:
    """Forwards every request but those at fault.

    Attributes:
        fails: (method, path) → whether it is answered with 503.
        cuts: (method, path) → whether the last byte of what is sent is lost.
    """

    def __init__(self, behind: str):
        self.behind = urlsplit(behind).netloc
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
        asked = request.command, request.path
        if self.fails(*asked):
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        headers = {n: v for n, v in request.headers.items() if n.lower() not in OF_THE_BODY}
        if self.cuts(*asked):
            # What Amazon's client sends is chunked once more, with a checksum behind.
            body = unchunked(io.BytesIO(body))[:-1]
            headers = {n: v for n, v in headers.items() if n.lower() not in OF_THE_CHECKSUM}
        onward = http.client.HTTPConnection(self.behind)
        onward.request(request.command, request.path, body, headers)
        with onward.getresponse() as found:
            content = found.read()
            request.send_response(found.status)
            for name, value in found.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    request.send_header(name, value)
            length = found.getheader("Content-Length") if request.command == "HEAD" else None
            request.send_header("Content-Length", length or str(len(content)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)
        onward.close()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def unchunked(stream: Any) -> bytes:
    parts = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():  # what follows the last chunk
        pass
    return b"".join(parts)


class Some:
    """The first so many of what has to do with a path: `Some(3, "PUT", "one.txt")`."""

    def __init__(self, count: int, method: str, path: str = ""):
        self.left, self.method, self.path = count, method, path
        self.lock = threading.Lock()

    def __call__(self, method: str, path: str) -> bool:
        with self.lock:
            hit = self.left > 0 and method == self.method and self.path in path
            self.left -= hit
        return hit
