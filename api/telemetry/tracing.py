"""Traces of scoring requests for an OpenTelemetry collector. Nothing of it is imported where none is set."""

import time
from typing import TYPE_CHECKING

from litestar.types import Scope

from api.telemetry.request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "model-serving"
NS = 1_000_000_000


class Tracing:
    """Makes the spans of a request when it is over: its way through the threads then costs nothing more.

    A trace goes on from the caller's `traceparent` (W3C). The exporter sends in the background and drops what it can't.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, route: str, status: int, began: float, ended: float, context: RequestContext) -> str:
        """One span for the request and one a stage; `began` and `ended` are perf_counter. Returns the trace's id."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        offset_ns = time.time_ns() - int(time.perf_counter() * NS)

        def at(moment: float) -> int:
            return offset_ns + int(moment * NS)

        headers = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in {b"traceparent", b"tracestate"}
        }
        span = self._tracer.start_span(
            f"POST {route}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=at(began),
            attributes={
                "http.request.method": "POST",
                "http.route": route,
                "http.response.status_code": status,
                "serving.model": context.model or "",
                "serving.request_id": context.request_id or "",
            },
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, context.problem))
        for name, from_, until in context.pending.stages() if context.pending else ():
            stage = self._tracer.start_span(name, context=set_span_in_context(span), start_time=at(from_))
            stage.end(at(until))
        span.end(at(ended))
        return format_trace_id(span.get_span_context().trace_id)

    def stop(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.shutdown()


def tracing_to(endpoint: str | None) -> Tracing | None:
    """Tracing to the collector at `endpoint`, over HTTP; None where there is none."""
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A provider of our own: MLflow and whatever else is in the process keep theirs.
    provider = TracerProvider(
        resource=Resource.create({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
    )
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
