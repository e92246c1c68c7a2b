"""OpenTelemetry: a span for each request, and one for each phase of it, in whatever process.

On where OTEL_EXPORTER_OTLP_ENDPOINT says where spans go, and otherwise not there at all. Names,
samplers and batches are set as everywhere: https://opentelemetry.io/docs/specs/otel/configuration/.
Spans hold what the access log does, and never a text.
"""

import functools
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.requests import Request

from stillroom.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer


ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

EXPORTER = "opentelemetry.exporter.otlp.proto.http"

Carrier = Mapping[str, str]  # W3C's headers: who is the parent of what is done elsewhere


def check() -> None:
    """Raises UserError where spans are wanted and the package that sends them is missing."""
    if _wanted():
        try:
            found = importlib.util.find_spec(f"{EXPORTER}.trace_exporter")
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(
                ENDPOINTS[0],
                "is set, and OpenTelemetry's exporter is not installed",
                "Run `pip install stillroom[telemetry]`, or unset it",
            )


def began(request: Request, route: str) -> "Span | None":
    """The span of a request, a child of its sender's where the `traceparent` header names one.
    Probes, scrapes and what else only looks have none.
    """
    if (tracer := _tracer()) is None or request.method != "POST":
        return None
    from opentelemetry.trace import SpanKind

    return tracer.start_span(
        f"{request.method} {route}",
        _context(request.headers),
        SpanKind.SERVER,
        {"http.request.method": request.method, "http.route": route},
    )


def ended(span: "Span", status: int, told: Mapping[str, str | int]) -> None:
    """Sends a request's span, with what is known of it."""
    from opentelemetry.trace import StatusCode

    span.set_attributes({"http.response.status_code": status})
    span.set_attributes({f"stillroom.{name}": value for name, value in told.items()})
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


@contextmanager
def sending(parent: "Span | None") -> Iterator[Carrier | None]:
    """Around the way to a replica and back; gives what the replica's spans hang on."""
    if parent is None or (tracer := _tracer()) is None:
        yield None
        return
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with tracer.start_as_current_span("send", set_span_in_context(parent)) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
        yield carrier


def phases(parent: Carrier | None, seconds: Mapping[str, float]) -> None:
    """In a replica: spans of what it has just done, one phase after the other, in order."""
    if parent is None or (tracer := _tracer()) is None:
        return
    context = _context(parent)
    at = time.time_ns() - int(sum(seconds.values()) * 1e9)
    for name, took in seconds.items():
        end = at + int(took * 1e9)
        tracer.start_span(name, context, start_time=at).end(end)
        at = end


def trace_of(span: "Span") -> str:
    """32 hex digits."""
    return format(span.get_span_context().trace_id, "032x")


def _wanted() -> bool:
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(os.environ.get(name) for name in ENDPOINTS)


@functools.cache
def _tracer() -> "Tracer | None":
    """This process's; None where no spans are wanted. Nothing is imported for that."""
    if not _wanted():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = os.environ.get("OTEL_SERVICE_NAME", "stillroom")
    provider = TracerProvider(resource=Resource.create({"service.name": named}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("stillroom")


def _context(carrier: Carrier) -> "Context":
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier)
