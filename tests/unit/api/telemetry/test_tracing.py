"""Traces are made from the context of a request and continue that of its caller."""

import socket
import subprocess
import sys
import time
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.inference.micro_batch import MicroBatch, PendingRequest
from api.telemetry.request_context import RequestContext
from api.telemetry.tracing import Tracing, tracing_to
from tests.support.fakes import FakeScorer

ROOT = Path(__file__).resolve().parents[4]


def test_a_request_is_a_child_span_of_its_caller_with_one_span_per_stage() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    pending = PendingRequest(FakeScorer(), {"driver_id": [1]}, 1)
    started_at = pending.queued_at
    MicroBatch([pending]).run()
    scope = {"headers": [(b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]}
    context = RequestContext(request_id="r", model="ranker/1", pending=pending)
    trace_id = Tracing(provider).record(scope, "/scores", 200, started_at, started_at + 1, context)  # type: ignore[arg-type]
    assert trace_id == "0af7651916cd43dd8448eb211c80319c"
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /scores", "queue", "lookup", "predict"}
    request = spans["POST /scores"]
    assert f"{request.parent.span_id:x}" == "b7ad6b7169203331"
    assert request.end_time - request.start_time == 1_000_000_000
    assert request.attributes["serving.model"] == "ranker/1"
    assert all(spans[name].parent.span_id == request.context.span_id for name in ("queue", "lookup", "predict"))
    assert spans["queue"].end_time <= spans["lookup"].start_time


def test_without_a_collector_opentelemetry_is_not_imported() -> None:
    assert tracing_to(None) is None
    program = (
        "import sys, api.app; from api.telemetry.tracing import tracing_to; tracing_to(None);"
        "sys.exit('opentelemetry' in {name.partition('.')[0] for name in sys.modules})"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_remaining_spans_are_sent_at_the_end_which_does_not_wait_long_for_a_collector_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        tracing = tracing_to(f"http://127.0.0.1:{collector.getsockname()[1]}/")
        assert tracing is not None
        now = time.perf_counter()
        tracing.record({"headers": []}, "/scores", 200, now - 1, now, RequestContext())  # type: ignore[typeddict-item]
        tracing.stop()
        assert time.perf_counter() - now < 9
        collector.settimeout(1)
        connection, _ = collector.accept()
        with connection:
            assert connection.recv(4096).startswith(b"POST /v1/traces HTTP/1.1\r\n")
