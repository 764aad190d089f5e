"""What Prometheus reads of requests, features and the model."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
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


def test_every_answer_is_counted_also_those_that_no_route_gave(client: TestClient[Any]) -> None:
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


def test_stages_features_and_the_excluded_are_told(client: TestClient[Any]) -> None:
    client.post("/scores", json={"request_id": "r", "driver_ids": [1, 2, -1]})
    told = samples(client)
    for stage in ("queue", "lookup", "predict"):
        assert told[f"serving_stage_duration_seconds_count stage={stage}"] == 1
    assert told["serving_feature_vectors_total status=complete"] == 3
    assert told["serving_entities_excluded_total reason=not_found"] == 1
    assert told["serving_feature_age_seconds_bucket le=300.0"] == 1
    assert told["serving_feature_age_seconds_bucket le=60.0"] == 0
    assert told["serving_requests_in_flight"] == 1  # the scrape itself
    assert told["process_resident_memory_bytes"] > 0


def test_what_serves_and_how_it_came_to_is_told(client: TestClient[Any]) -> None:
    told = samples(client)
    assert told["serving_model_info name=ranker version=7"] == 1
    assert told["serving_model_swaps_total"] == 1
    assert told["serving_model_refusals_total"] == told["serving_model_refused"] == 0
    assert told["serving_registry_last_answer_age_seconds"] >= 0
    assert told["serving_breaker_open"] == 0


def test_a_store_that_fails_a_request_opens_the_breaker_and_is_not_asked_again(
    client: TestClient[Any], scorer: FakeScorer
) -> None:
    scorer.lookup_error = scorer.store_error = FeatureStoreError("reading the online store", "refused")
    for _ in range(10):
        assert client.post("/inference", json={"request_id": "r", "driver_ids": [1]}).status_code == 503
    told = samples(client)
    assert told["serving_breaker_open"] == told["serving_breaker_opened_total"] == 1
    assert client.get("/ready").status_code == 503
    assert told["serving_stage_duration_seconds_count stage=queue"] < 10


def test_head_is_get_without_a_body(client: TestClient[Any]) -> None:
    for path in ("/live", "/ready", "/metrics", "/", "/openapi.json"):
        answer = client.head(path)
        assert answer.status_code == 200, path
        assert answer.content == b""
    assert client.head("/inference").status_code == 405
    assert client.head("/nothing").status_code == 404


def test_told_to_stop_ready_says_so_and_connections_are_not_kept() -> None:
    stopping = threading.Event()
    with TestClient(create_app(Settings(model_name="ranker"), FakeLoader(), stopping)) as client:
        when_ready(client)
        stopping.set()
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert "is stopping" in answer.json()["detail"]
        assert answer.headers["Connection"] == "close"
        assert client.post("/inference", json={"request_id": "r", "driver_ids": [1]}).status_code == 200


def test_what_feast_leaves_in_the_environment_changes_no_metric(tmp_path: Path) -> None:
    program = (
        "from api.telemetry.metrics import Metrics; from prometheus_client import generate_latest;"
        "m = Metrics(); m.answered('/live', 'GET', 200, 0.1); print(generate_latest(m.registry).decode())"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert 'serving_requests_total{method="GET",route="/live",status="200"} 1.0' in result.stdout
    assert list(tmp_path.iterdir()) == []
