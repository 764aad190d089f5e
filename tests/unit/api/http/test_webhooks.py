"""The registry's webhook: signed, recent deliveries make the API poll the alias, each of them once."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from litestar.testing import TestClient
from mlflow.webhooks.delivery import _generate_hmac_signature  # what MLflow itself uses

from api.app import create_app
from api.errors import NotSigned
from api.http.webhooks import DELIVERY, MAX_AGE_S, PATH, SIGNATURE, TIMESTAMP, Deliveries
from api.model.loading import Target
from scoring.secret import Secret
from scoring.settings import Settings
from tests.support.fakes import FakeLoader

SECRET = "a secret of more than 16 characters"
BODY = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "ranker"}}).encode()
NOW = 1_800_000_000


def delivery(body: bytes = BODY, at: float | str = NOW, number: str = "d-1", secret: str = SECRET) -> dict[str, str]:
    timestamp = at if isinstance(at, str) else str(int(at))
    signature = _generate_hmac_signature(secret, number, timestamp, body.decode())
    return {DELIVERY: number, TIMESTAMP: timestamp, SIGNATURE: signature}


def deliveries(at: float = NOW) -> Deliveries:
    return Deliveries(Secret(SECRET), lambda: at)


def test_a_delivery_that_mlflow_signed_is_new_once() -> None:
    accepted = deliveries()
    assert accepted.is_new(delivery(), BODY)
    assert not accepted.is_new(delivery(), BODY)
    assert accepted.is_new(delivery(number="d-2"), BODY)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        delivery(secret="another secret, as long as the first"),
        delivery(body=b"{}"),
        delivery() | {TIMESTAMP: str(NOW + 1)},
        delivery() | {DELIVERY: "d-9"},
        delivery() | {SIGNATURE: "v1,"},
        delivery() | {SIGNATURE: "é" * 40},
        {name: value for name, value in delivery().items() if name != SIGNATURE},
        delivery(at=NOW - MAX_AGE_S - 1),
        delivery(at=NOW + MAX_AGE_S + 1),
        delivery(at="1" * 5000),
    ],
    ids=range(11),
)
def test_unsigned_changed_or_old_deliveries_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(NotSigned):
        deliveries().is_new(headers, BODY)


def test_a_repetition_is_refused_once_it_is_old() -> None:
    now = [float(NOW)]
    accepted = Deliveries(Secret(SECRET), lambda: now[0])
    assert accepted.is_new(delivery(), BODY)
    now[0] += MAX_AGE_S
    assert not accepted.is_new(delivery(), BODY)
    now[0] += 1
    with pytest.raises(NotSigned):
        accepted.is_new(delivery(), BODY)


class CountingLoader(FakeLoader):
    def __init__(self) -> None:
        super().__init__()
        self.polled = threading.Semaphore(0)

    def poll(self) -> Target:
        self.polled.release()
        return super().poll()


@pytest.fixture
def loader() -> CountingLoader:
    return CountingLoader()


@pytest.fixture
def client(loader: CountingLoader) -> Iterator[TestClient[Any]]:
    settings = Settings(model_name="ranker", poll_interval_s=3600, webhook_secret=Secret(SECRET))
    with TestClient(create_app(settings, loader)) as client:
        for _ in range(2):  # before the first version is loaded, and before it is swapped in
            assert loader.polled.acquire(timeout=10)
        yield client


def deliver(client: TestClient[Any], body: bytes, number: str) -> int:
    headers = delivery(body, time.time(), number) | {"Content-Type": "application/json"}
    return client.post(PATH, content=body, headers=headers).status_code


def test_a_delivery_starts_a_poll_of_the_alias(client: TestClient[Any], loader: CountingLoader) -> None:
    assert deliver(client, BODY, "d-1") == 204
    assert loader.polled.acquire(timeout=10)


def test_events_of_other_models_and_repetitions_start_no_poll(client: TestClient[Any], loader: CountingLoader) -> None:
    other = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "other"}}).encode()
    assert deliver(client, other, "d-1") == 204
    assert deliver(client, BODY, "d-2") == 204
    assert loader.polled.acquire(timeout=10)
    assert deliver(client, BODY, "d-2") == 204
    assert not loader.polled.acquire(timeout=0.3)


def test_an_unsigned_delivery_is_refused_and_a_signed_one_of_unknown_form_starts_a_poll(
    client: TestClient[Any], loader: CountingLoader
) -> None:
    refused = client.post(PATH, content=BODY)
    assert refused.status_code == 401
    assert refused.json()["type"].endswith("not-signed")
    assert not loader.polled.acquire(timeout=0.3)
    assert deliver(client, b"[1]", "d-3") == 204
    assert loader.polled.acquire(timeout=10)


def test_without_a_secret_the_route_does_not_exist() -> None:
    with TestClient(create_app(Settings(model_name="ranker"), FakeLoader())) as client:
        assert client.post(PATH, content=BODY).status_code == 404
