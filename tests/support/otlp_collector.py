"""A collector of OpenTelemetry spans over HTTP, in this process."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class ReceivedSpans:
    def __init__(self):
        self.batches, self.changed = [], threading.Condition()

    def wait_for(self, trace_id, count):
        """Name → (span, resource attributes) of a trace, once it has that many spans."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.spans(trace_id)) >= count, timeout=60), (
                self.spans(trace_id)
            )
            return self.spans(trace_id)

    def spans(self, trace_id):
        return {
            span.name: (span, {a.key: a.value.string_value for a in batch.resource.attributes})
            for batch in self.batches
            for scope in batch.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace_id
        }


@contextlib.contextmanager
def run_collector():
    """Yields the endpoint's URL, and the spans that arrive there."""
    received = ReceivedSpans()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            with received.changed:
                received.batches += ExportTraceServiceRequest.FromString(body).resource_spans
                received.changed.notify_all()
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
