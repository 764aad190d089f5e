"""Clients that people already have, on the real API and its SQLite stores. Each gets the bits of POST /scores."""

import json
from collections.abc import Iterator

import pytest

from tests.support.api_server import ApiServer
from tests.support.worlds import build_driver_world, register_driver_model

KEY = "0123456789abcdef"
DRIVERS = [1001, 1002, 1003, 1004, 1005]
UNKNOWN_DRIVER = 9999


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API, which requires a key. Reasons and scores of DRIVERS and UNKNOWN_DRIVER do not change."""
    folder = tmp_path_factory.mktemp("drivers")
    world = build_driver_world(folder)
    register_driver_model(world)
    environment = world.environment | {"SERVING_DEADLINE_S": "5", "SERVING_API_KEYS": KEY, "SERVING_DRAIN_S": "0"}
    with ApiServer(folder, environment=environment, key=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def scores(server: ApiServer) -> dict[int, float | None]:
    """Driver → score in JSON; None for UNKNOWN_DRIVER."""
    body = json.dumps({"request_id": "r", "driver_ids": [*DRIVERS, UNKNOWN_DRIVER]}).encode()
    rows = server.ask(body, "/scores").json()["scores"]
    assert [row["reason"] for row in rows] == [*[None] * len(DRIVERS), "not_found"]
    return {row["driver_id"]: row["score"] for row in rows}


def test_the_json_of_inference_has_the_best_of_the_scores(server: ApiServer, scores: dict[int, float | None]) -> None:
    known = {driver: score for driver, score in scores.items() if score is not None}
    answer = server.ask(json.dumps({"request_id": "r", "driver_ids": DRIVERS}).encode()).json()
    assert (answer["prediction"], answer["score"]) == max(known.items(), key=lambda item: item[1])
