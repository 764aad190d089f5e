"""Traces of scoring requests for an OpenTelemetry collector. OpenTelemetry is imported only if a collector is set."""

import time
from typing import TYPE_CHECKING

from litestar.types import Scope

from api.telemetry.request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "model-serving"
NS = 1_000_000_000


class Tracing:
    """Makes the spans of a request after its end, so that the threads that process it do no tracing.

    A trace continues that of the caller's `traceparent` (W3C). The exporter sends spans in the background, and drops
    those that it can't send.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self, scope: Scope, route: str, status: int, started_at: float, ended_at: float, context: RequestContext
    ) -> str:
        """Record a span for the request and one per stage. Return the trace's id.

        Times are `time.perf_counter` in seconds.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        offset_ns = time.time_ns() - int(time.perf_counter() * NS)

        def epoch_ns(time_s: float) -> int:
            return offset_ns + int(time_s * NS)

        headers = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in {b"traceparent", b"tracestate"}
        }
        span = self._tracer.start_span(
            f"POST {route}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=epoch_ns(started_at),
            attributes={
                "http.request.method": "POST",
                "http.route": route,
                "http.response.status_code": status,
                "serving.model": context.model,
                "serving.request_id": context.request_id or "",
                **({"serving.overrides": context.overrides} if context.overrides else {}),
            },
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, context.problem))
        for name, stage_started_at, stage_ended_at in context.pending.stages() if context.pending else ():
            started_ns = epoch_ns(stage_started_at)
            stage = self._tracer.start_span(name, context=set_span_in_context(span), start_time=started_ns)
            stage.end(epoch_ns(stage_ended_at))
        span.end(epoch_ns(ended_at))
        return format_trace_id(span.get_span_context().trace_id)

    def stop(self) -> None:
        """Send the remaining spans, for a few seconds at most."""
        self._provider.shutdown()


def tracing_to(endpoint: str | None) -> Tracing | None:
    """Make the tracing to the collector at `endpoint`, over HTTP. Return None if `endpoint` is None."""
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A separate provider: MLflow and other libraries in the process keep theirs.
    provider = TracerProvider(
        resource=Resource.create({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
    )
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
