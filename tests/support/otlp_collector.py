"""A receiver of OpenTelemetry's spans over HTTP, as a collector is."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Received:
    def __init__(self):
        self.batches, self.more = [], threading.Condition()

    def of(self, trace, count):
        """The spans of a trace by their names, when there are so many; waits for them."""

        def found():
            return {
                span.name: (span, {a.key: a.value.string_value for a in batch.resource.attributes})
                for batch in self.batches
                for scope in batch.scope_spans
                for span in scope.spans
                if span.trace_id.hex() == trace
            }

        with self.more:
            assert self.more.wait_for(lambda: len(found()) >= count, timeout=60), found()
            return found()


@contextlib.contextmanager
def receiver():
    """Yields the endpoint's URL, and what it gets."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            with received.more:
                received.batches += ExportTraceServiceRequest.FromString(body).resource_spans
                received.more.notify_all()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
