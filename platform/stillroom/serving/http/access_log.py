"""The access log: one line of JSON for each request, without any of its texts."""

import logging
import re
import sys
import time
from logging.handlers import WatchedFileHandler

import orjson
from starlette.requests import Request

from stillroom.serving.telemetry.request_record import RequestRecord
from stillroom.serving.telemetry.tracing import trace_id_of

# https://www.w3.org/TR/trace-context: version, trace, parent, flags.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def header_trace_id(request: Request) -> str | None:
    """The trace id in a request's `traceparent` header; None without a valid one."""
    match = TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    if match is None:
        return None
    trace_id, parent_id = match.groups()
    zero = {"0"}  # by the specification, all zeros are invalid
    return trace_id if set(trace_id) != zero and set(parent_id) != zero else None


class AccessLog:
    """Writes the access log.

    Args:
        path: a file, "-" for standard output, None for nowhere. A file that is moved away (by
            logrotate, say) is created again.
    """

    def __init__(self, path: str | None):
        self._log = logging.Logger("stillroom.access", logging.INFO)
        if path is not None:
            handler = logging.StreamHandler(sys.stdout) if path == "-" else WatchedFileHandler(path)
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._log.addHandler(handler)

    def write(
        self, request: Request, route: str, record: RequestRecord, status: int, seconds: float
    ) -> None:
        """Write a request's line, `seconds` after the request arrived."""
        if not self._log.handlers:
            return
        line = {
            "time": time.time(),
            "request_id": request.headers.get("x-request-id"),  # Serve adds one where it is missing
            "trace_id": trace_id_of(record.span) if record.span else header_trace_id(request),
            "method": request.method,
            "route": route,
            "status": status,
            "client": record.client,
            "model": record.model,
            "policy": record.policy,
            "bytes_in": record.bytes_in,
            "texts": record.texts,
            "tokens": record.tokens,
            "seconds": round(seconds, 6),
            "phases": {phase: round(seconds, 6) for phase, seconds in record.phases.items()},
        }
        self._log.info(orjson.dumps(line).decode())
