"""The whole way in three worlds: definitions, training, online store, a file through the graph, keys through the API.

Batch and online give the same score for the same entity at the same time, to the last bit.
"""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient

from api.app import create_app
from scoring.features.feature_store import apply_definitions
from tests.support.graph import Graph, failure
from tests.support.servers import wait_until
from tests.support.worlds import (
    DRIVER_INPUTS,
    World,
    build_customer_world,
    build_driver_world,
    build_payment_world,
    register_driver_model,
)


def batch(world: World, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the whole graph makes of these entity rows as of now."""
    graph, now = Graph(world, folder), dt.datetime.now(dt.UTC).isoformat()
    lines = [",".join([*map(str, row.values()), now]) for row in rows]
    graph.write_request("\n".join([",".join([*rows[0], "event_timestamp"]), *lines]) + "\n")
    run = graph.run("serve_batch")
    assert run.success, failure(run)
    return graph.output()


def online(world: World, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What POST /scores answers."""
    with TestClient(create_app(world.settings_with(SERVING_DEADLINE_S="5"))) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, lambda: client.get("/ready").text)
        answer = client.post("/scores", json={"request_id": "1"} | request)
        assert answer.status_code == 200, answer.text
        scores: list[dict[str, Any]] = answer.json()["scores"]
        return scores


DRIVERS = [{"driver_id": driver} for driver in (1003, 1001, 9999, 1001, 1020)]
CUSTOMERS = [{"customer_id": customer} for customer in ("c-3", "c-29", "unknown", "c-0")]
PAIRS = [{"customer_id": "c-1", "merchant_id": 4}, {"customer_id": "c-4", "merchant_id": 1},
         {"customer_id": "c-4", "merchant_id": 9}]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "rows", "request_of"),
    [
        pytest.param(
            build_driver_world, DRIVERS, lambda rows: {"driver_ids": [row["driver_id"] for row in rows]}, id="drivers"
        ),
        pytest.param(
            build_customer_world,
            CUSTOMERS,
            lambda rows: {"customer_ids": [row["customer_id"] for row in rows]},
            id="customers",
        ),
        pytest.param(build_payment_world, PAIRS, lambda rows: {"entity_rows": rows}, id="payments"),
    ],
)
def test_batch_and_online_agree_to_the_last_bit(
    build: Callable[[Path], World],
    rows: list[dict[str, Any]],
    request_of: Callable[[list[dict[str, Any]]], dict[str, Any]],
    tmp_path: Path,
) -> None:
    world = build(tmp_path)
    written = batch(world, rows, tmp_path)
    answered = online(world, request_of(rows))
    keys = list(rows[0])
    assert [{key: row[key] for key in keys} for row in written] == rows
    assert [{key: row[key] for key in keys} for row in answered] == rows
    assert [row["prediction"] for row in written] == [row["score"] for row in answered]
    assert [row["reason"] for row in written] == [row["reason"] for row in answered]
    assert {row["reason"] for row in written} == {None, "not_found"}
    assert len({row["prediction"] for row in written if row["prediction"] is not None}) > 1
    assert {(row["model_name"], row["model_version"]) for row in written} == {(world.settings.model_name, 1)}


def test_a_repository_without_feature_services_gives_the_same_predictions(tmp_path: Path) -> None:
    world = build_driver_world(tmp_path)
    (tmp_path / "tagged").mkdir()
    tagged = batch(world, DRIVERS, tmp_path / "tagged")
    definitions_file = tmp_path / "feature_repo" / "definitions.py"
    definitions_file.write_text(definitions_file.read_text().partition("driver_ranking = FeatureService(")[0])
    assert apply_definitions(world.store()).feature_services == ()
    register_driver_model(world, tagged=False)
    untagged = batch(world, DRIVERS, tmp_path)
    answered = online(world, {"driver_ids": [row["driver_id"] for row in DRIVERS]})
    for column in ("driver_id", *DRIVER_INPUTS, "prediction", "reason"):
        assert [row[column] for row in untagged] == [row[column] for row in tagged]
    assert [row["score"] for row in answered] == [row["prediction"] for row in untagged]
    assert {row["model_version"] for row in untagged} == {2}
    features = "driver_stats:acc_rate, driver_stats:conv_rate, driver_stats:avg_daily_trips"
    assert {row["feature_service"] for row in untagged} == {features}
