"""A test client of the API on a fake model."""

from typing import Any

from litestar.testing import TestClient

from api.app import create_app
from scoring.settings import Settings
from tests.support.fakes import FakeLoader, FakeScorer
from tests.support.servers import wait_until


def api(scorer: FakeScorer | None = None, *, loader: FakeLoader | None = None, **fields: Any) -> TestClient[Any]:
    given_settings = Settings(model_name="ranker", poll_interval_s=0.1, **{"deadline_s": 5.0, **fields})
    return TestClient(create_app(given_settings, loader or FakeLoader(scorer)), raise_server_exceptions=False)


def when_ready(client: TestClient[Any]) -> TestClient[Any]:
    wait_until(lambda: client.get("/ready").status_code == 200, lambda: client.get("/ready").text, 10, every_s=0.005)
    return client
