"""The metrics that Prometheus scrapes."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from api.app import create_app
from api.telemetry.metrics import Distribution, Tally
from scoring.errors import FeatureStoreError
from scoring.settings import Settings
from tests.support.api_client import when_ready
from tests.support.fakes import FakeLoader, FakeScorer

ROOT = Path(__file__).resolve().parents[4]


def samples(client: TestClient[Any]) -> dict[str, float]:
    """`name{label="value",..}` → value."""
    text = client.get("/metrics").text
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer(7)


@pytest.fixture
def client(scorer: FakeScorer) -> Iterator[TestClient[Any]]:
    with TestClient(create_app(Settings(model_name="ranker", deadline_s=5), FakeLoader(scorer))) as started:
        yield when_ready(started)


def test_every_response_is_counted_even_if_no_route_matches(client: TestClient[Any]) -> None:
    client.post("/inference", json={"request_id": "r", "driver_ids": [1]})
    client.post("/inference", json={"request_id": "r", "driver_ids": ["1"]})
    client.get("/inference")
    client.get("/etc/passwd")
    client.request("BREW", "/a/path/of/somebody's/own")
    counted = {name: value for name, value in samples(client).items() if name.startswith("serving_requests_total")}
    del counted["serving_requests_total method=GET route=/ready status=200"]
    counted = {name: value for name, value in counted.items() if "status=503" not in name}
    assert counted == {
        "serving_requests_total method=POST route=/inference status=200": 1,
        "serving_requests_total method=POST route=/inference status=422": 1,
        "serving_requests_total method=GET route=/inference status=405": 1,
        "serving_requests_total method=GET route=other status=404": 1,
        "serving_requests_total method=other route=other status=404": 1,
    }


def test_stages_features_and_excluded_entities_are_counted(client: TestClient[Any]) -> None:
    client.post("/scores", json={"request_id": "r", "driver_ids": [1, 2, -1]})
    scraped = samples(client)
    for stage in ("queue", "lookup", "predict"):
        assert scraped[f"serving_stage_duration_seconds_count stage={stage}"] == 1
    assert scraped["serving_feature_vectors_total status=complete"] == 3
    assert scraped["serving_entities_excluded_total reason=not_found"] == 1
    assert scraped["serving_feature_age_seconds_bucket le=300.0"] == 1
    assert scraped["serving_feature_age_seconds_bucket le=60.0"] == 0
    assert scraped["serving_requests_in_flight"] == 1  # the scrape itself
    assert scraped["process_resident_memory_bytes"] > 0


def test_the_model_the_registry_and_the_breaker_are_reported(client: TestClient[Any]) -> None:
    scraped = samples(client)
    assert scraped["serving_model_info name=ranker version=7"] == 1
    assert scraped["serving_model_swaps_total"] == 1
    assert scraped["serving_model_refusals_total"] == scraped["serving_model_refused"] == 0
    assert 0 <= scraped["serving_registry_last_answer_age_seconds"] < 60
    assert scraped["serving_breaker_open"] == 0


def test_failed_lookups_open_the_breaker_and_no_more_requests_reach_the_store(
    client: TestClient[Any], scorer: FakeScorer
) -> None:
    scorer.lookup_error = scorer.store_error = FeatureStoreError("reading the online store", "refused")
    for _ in range(10):
        assert client.post("/inference", json={"request_id": "r", "driver_ids": [1]}).status_code == 503
    scraped = samples(client)
    assert scraped["serving_breaker_open"] == scraped["serving_breaker_opened_total"] == 1
    assert client.get("/ready").status_code == 503
    assert scraped["serving_stage_duration_seconds_count stage=queue"] < 10


def test_head_responds_like_get_without_a_body(client: TestClient[Any]) -> None:
    for path in ("/live", "/ready", "/metrics", "/", "/openapi.json"):
        answer = client.head(path)
        assert answer.status_code == 200, path
        assert answer.content == b""
    assert client.head("/inference").status_code == 405
    assert client.head("/nothing").status_code == 404


def test_while_stopping_the_process_is_not_ready_and_closes_connections() -> None:
    stopping = threading.Event()
    with TestClient(create_app(Settings(model_name="ranker"), FakeLoader(), stopping)) as client:
        when_ready(client)
        stopping.set()
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert "is stopping" in answer.json()["detail"]
        assert answer.headers["Connection"] == "close"
        assert client.post("/inference", json={"request_id": "r", "driver_ids": [1]}).status_code == 200


def test_the_folder_that_feast_sets_in_the_environment_is_ignored(tmp_path: Path) -> None:
    program = (
        "from api.telemetry.metrics import Metrics; from prometheus_client import generate_latest;"
        "m = Metrics(); m.count_request('/live', 'GET', 200, 0.1); print(generate_latest(m.registry).decode())"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert 'serving_requests_total{method="GET",route="/live",status="200"} 1.0' in result.stdout
    assert list(tmp_path.iterdir()) == []


BOUNDS = (0.001, 0.0025, 0.5, 1.0)
ROUTES = st.sampled_from(["/inference", "/scores", 'a "b"\\c'])
SECONDS = st.floats(0, 10) | st.sampled_from(BOUNDS)


def exposition(register: Any) -> list[str]:
    """Return the lines of a scrape, without the sums, which differ in their last bits."""
    registry = CollectorRegistry()
    register(registry)
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_sum" not in line)


def registered(collector: Collector) -> Any:
    return lambda registry: registry.register(collector)


@given(st.lists(st.tuples(ROUTES, SECONDS)))
def test_a_distribution_is_exported_like_a_histogram_of_prometheus_client(observed: list[tuple[str, float]]) -> None:
    disable_created_metrics()
    ours = Distribution("took_seconds", "How long.", "route", BOUNDS)
    for route, seconds in observed:
        ours.add(seconds, route)

    def theirs(registry: CollectorRegistry) -> None:
        histogram = Histogram("took_seconds", "How long.", ("route",), buckets=BOUNDS, registry=registry)
        for route, seconds in observed:
            histogram.labels(route).observe(seconds)

    assert exposition(registered(ours)) == exposition(theirs)


@given(st.lists(st.tuples(ROUTES, st.sampled_from(["200", "503"]))))
def test_a_tally_is_exported_like_a_counter_of_prometheus_client(counted: list[tuple[str, str]]) -> None:
    disable_created_metrics()
    ours = Tally("requests", "Answered.", ("route", "status"))
    for labels in counted:
        ours.add(*labels)

    def theirs(registry: CollectorRegistry) -> None:
        counter = Counter("requests", "Answered.", ("route", "status"), registry=registry)
        for labels in counted:
            counter.labels(*labels).inc()

    assert exposition(registered(ours)) == exposition(theirs)


def test_the_sum_of_a_distribution_is_the_sum_of_its_observations() -> None:
    ours = Distribution("took_seconds", "How long.", "route", BOUNDS)
    for seconds in (0.25, 0.5, 4.0):
        ours.add(seconds, "/scores")

    def sums() -> Iterator[float]:
        for family in ours.collect():
            yield from (sample.value for sample in family.samples if sample.name.endswith("_sum"))

    assert list(sums()) == [4.75]
