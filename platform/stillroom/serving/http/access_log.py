"""The access log: a line of JSON for each request, and never a text in it."""

import logging
import re
import sys
import time
from logging.handlers import WatchedFileHandler

import orjson
from starlette.requests import Request

from stillroom.serving.telemetry.metrics import Seen
from stillroom.serving.telemetry.tracing import trace_of

# https://www.w3.org/TR/trace-context: version, trace, parent, flags.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def trace_id(request: Request) -> str | None:
    """The trace that a request belongs to, by its `traceparent` header; None where none is told."""
    found = TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    return found[1] if found and set(found[1]) != {"0"} and set(found[2]) != {"0"} else None


class AccessLog:
    """Writes to a file, "-" for standard output or nowhere.

    A file that is moved away (by logrotate, say) is made anew.
    """

    def __init__(self, to: str | None):
        self._log = logging.Logger("stillroom.access", logging.INFO)
        if to is not None:
            handler = logging.StreamHandler(sys.stdout) if to == "-" else WatchedFileHandler(to)
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._log.addHandler(handler)

    def write(self, request: Request, route: str, seen: Seen, status: int, seconds: float) -> None:
        if not self._log.handlers:
            return
        line = {
            "time": time.time(),
            "request_id": request.headers.get("x-request-id"),  # Serve gives one that has none
            "trace_id": trace_of(seen.span) if seen.span else trace_id(request),
            "method": request.method,
            "route": route,
            "status": status,
            "client": seen.client,
            "model": seen.model,
            "policy": seen.policy,
            "bytes_in": seen.bytes_in,
            "texts": seen.texts,
            "tokens": seen.tokens,
            "seconds": round(seconds, 6),
            "phases": {phase: round(took, 6) for phase, took in seen.phases.items()},
        }
        self._log.info(orjson.dumps(line).decode())
