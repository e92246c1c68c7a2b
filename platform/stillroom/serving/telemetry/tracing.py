"""OpenTelemetry spans: one for each request and one for each of its phases, in any process.

Tracing is on where OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise OpenTelemetry is not imported.
Names, samplers and batches are configured as usual:
https://opentelemetry.io/docs/specs/otel/configuration/. Spans contain what the access log does,
and never a text.
"""

import functools
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stillroom.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer


ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
TraceHeaders = Mapping[str, str]  # W3C trace context: the parent of spans in other processes


def check_exporter() -> None:
    """Raise UserError if tracing is on and the package that sends spans is missing."""
    if not _is_on():
        return
    try:
        spec = importlib.util.find_spec(f"{EXPORTER}.trace_exporter")
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise UserError(
            ENDPOINTS[0],
            "is set, and OpenTelemetry's exporter is not installed",
            "Run `pip install stillroom[telemetry]`, or unset it",
        )


def start_request_span(method: str, route: str, headers: Mapping[str, str]) -> "Span | None":
    """Start a request's span, a child of the sender's span if the headers contain `traceparent`.

    None where tracing is off, and for anything but a POST: probes and scrapes have no span.
    """
    if (tracer := _tracer()) is None or method != "POST":
        return None
    from opentelemetry.trace import SpanKind

    return tracer.start_span(
        f"{method} {route}",
        _context(headers),
        SpanKind.SERVER,
        {"http.request.method": method, "http.route": route},
    )


def end_request_span(span: "Span", status: int, attributes: Mapping[str, str | int]) -> None:
    """End and send a request's span.

    Args:
        status: of the HTTP response.
        attributes: name → value; each name gets the prefix `stillroom.`.
    """
    from opentelemetry.trace import StatusCode

    span.set_attributes({"http.response.status_code": status})
    span.set_attributes({f"stillroom.{name}": value for name, value in attributes.items()})
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


@contextmanager
def send_span(parent: "Span | None") -> Iterator[TraceHeaders | None]:
    """A span around a call to a replica; yields the headers that the replica's spans need."""
    if parent is None or (tracer := _tracer()) is None:
        yield None
        return
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with tracer.start_as_current_span("send", set_span_in_context(parent)) as span:
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(span))
        yield headers


def record_phases(parent: TraceHeaders | None, phases: Mapping[str, float]) -> None:
    """In a replica: spans of the phases that have just ended, one after the other.

    Args:
        phases: name → seconds, in order.
    """
    if parent is None or (tracer := _tracer()) is None:
        return
    context = _context(parent)
    start_ns = time.time_ns() - int(sum(phases.values()) * 1e9)
    for name, seconds in phases.items():
        end_ns = start_ns + int(seconds * 1e9)
        tracer.start_span(name, context, start_time=start_ns).end(end_ns)
        start_ns = end_ns


def trace_id_of(span: "Span") -> str:
    """The id of a span's trace, 32 hex digits."""
    return format(span.get_span_context().trace_id, "032x")


def _is_on() -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(os.environ.get(name) for name in ENDPOINTS)


@functools.cache
def _tracer() -> "Tracer | None":
    """This process's tracer; None, with nothing imported, where tracing is off."""
    if not _is_on():
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service_name = os.environ.get("OTEL_SERVICE_NAME", "stillroom")
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("stillroom")


def _context(headers: TraceHeaders) -> "Context":
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(headers)
