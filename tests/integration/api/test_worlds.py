"""The API on real SQLite stores: Feast online store, Feast registry, MLflow registry."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from litestar.testing import TestClient

from api.app import create_app
from api.model.loading import RegistryLoader
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.models.admission import validate
from scoring.models.registry import MlflowRegistry
from scoring.settings import Settings
from tests.support import servers
from tests.support.documentation import code_blocks
from tests.support.servers import HOST, RedisServer, free_port
from tests.support.worlds import (
    World,
    build_customer_world,
    build_driver_world,
    build_payment_world,
    build_ranking_world,
    register_driver_model,
)

JSON = {"Content-Type": "application/json"}
FAST = {"SERVING_POLL_INTERVAL_S": "0.1", "SERVING_DEADLINE_S": "5"}


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_driver_world(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def customers(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_customer_world(tmp_path_factory.mktemp("customers"))


@pytest.fixture(scope="module")
def payments(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_payment_world(tmp_path_factory.mktemp("payments"))


@pytest.fixture
def driver_api(drivers: World) -> Iterator[TestClient[Any]]:
    with serving(drivers.settings_with(**FAST)) as client:
        yield client


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[TestClient[Any]]:
    with TestClient(create_app(settings, loader(settings))) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, client)
        yield client


def loader(settings: Settings) -> RegistryLoader:
    """As the API's own, but models are admitted in this process: a trial process takes seconds to start."""
    return RegistryLoader(
        settings, MlflowRegistry.from_settings(settings), lambda files, rows: validate(files, rows)[1]
    )


def wait_until(condition: Callable[[], bool], client: TestClient[Any]) -> None:
    servers.wait_until(condition, lambda: client.get("/ready").text)


def version(client: TestClient[Any]) -> int:
    return client.get("/version").json()["model"]["version"]


def test_a_version_whose_feature_is_missing_leaves_the_old_one_serving(
    drivers: World, driver_api: TestClient[Any]
) -> None:
    before = version(driver_api)
    refused = register_driver_model(drivers, inputs=["acc_rate", "conv_rate", "age_of_car"])
    wait_until(lambda: driver_api.get("/ready").json()["refused"] is not None, driver_api)
    ready = driver_api.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["refused"]["model"] == f"driver_ranker/{refused}"
    assert "age_of_car" in ready.json()["refused"]["reason"]
    assert version(driver_api) == before
    assert driver_api.post("/inference", json={"request_id": "r", "driver_ids": [1001]}).status_code == 200
    drivers.promote(before)
    wait_until(lambda: driver_api.get("/ready").json()["refused"] is None, driver_api)


def with_its_own_definitions(world: World, folder: Path) -> Settings:
    # Without the registry: it holds the path of the other world's online store, which an apply would empty.
    shutil.copytree(
        world.folder / "feature_repo", folder / "feature_repo", ignore=shutil.ignore_patterns("registry.db")
    )
    settings = world.settings_with(**FAST, SERVING_FEATURE_REPO=str(folder / "feature_repo"))
    apply_definitions(open_feature_store(settings))
    return settings


def test_changed_feature_definitions_are_served_without_a_restart(drivers: World, tmp_path: Path) -> None:
    settings = with_its_own_definitions(drivers, tmp_path)
    with serving(settings) as client:
        before = client.get("/version").json()["definitions"]
        definitions = settings.feature_repo / "definitions.py"
        definitions.write_text(definitions.read_text().replace("timedelta(days=1)", "timedelta(microseconds=1)"))
        apply_definitions(open_feature_store(settings))
        wait_until(lambda: client.get("/version").json()["definitions"] != before, client)
        answer = client.post("/inference", json={"request_id": "r", "driver_ids": [1001]})
        assert answer.status_code == 422
        assert answer.json()["excluded"] == [{"driver_id": 1001, "reason": "stale"}]


@contextlib.contextmanager
def emptied(settings: Settings) -> Iterator[Callable[[], None]]:
    """Without the rows of the view driver_stats; yields what writes them again."""
    with contextlib.closing(sqlite3.connect(settings.feature_repo / "data" / "online_store.db")) as database:
        kept = database.execute("SELECT * FROM rides_driver_stats").fetchall()
        database.execute("DELETE FROM rides_driver_stats")
        database.commit()

        def fill() -> None:
            database.executemany(f"INSERT INTO rides_driver_stats VALUES ({','.join('?' * len(kept[0]))})", kept)
            database.commit()

        yield fill


def test_an_empty_store_excludes_every_entity_and_ready_names_the_view_and_the_command(
    drivers: World, tmp_path: Path
) -> None:
    settings = with_its_own_definitions(drivers, tmp_path)
    with emptied(settings) as fill, serving(settings) as client:
        answer = client.post("/inference", json={"request_id": "r", "driver_ids": [1001]})
        assert answer.status_code == 422
        assert answer.json()["excluded"] == [{"driver_id": 1001, "reason": "not_found"}]
        said = client.get("/ready").json()["feature_store"]["empty"]
        assert said.startswith("The online store has no row of feature view 'driver_stats': materialize the asset ")
        fill()
        wait_until(lambda: client.get("/ready").json()["feature_store"]["empty"] is None, client)


def test_a_version_that_reads_a_view_outside_the_online_store_is_refused(drivers: World, tmp_path: Path) -> None:
    settings = with_its_own_definitions(drivers, tmp_path)
    definitions = settings.feature_repo / "definitions.py"
    definitions.write_text(definitions.read_text().replace("online=True", "online=False"))
    apply_definitions(open_feature_store(settings))
    with TestClient(create_app(settings, loader(settings))) as client:
        wait_until(lambda: client.get("/ready").json()["refused"] is not None, client)
        said = client.get("/ready").json()["refused"]["reason"]
        assert "it reads feature view 'driver_stats', which has online=False" in said


def test_a_version_is_proven_by_golden_rows_of_the_store_or_by_a_request(drivers: World, tmp_path: Path) -> None:
    settings = with_its_own_definitions(drivers, tmp_path)
    before = int(drivers.client.get_model_version_by_alias("driver_ranker", "champion").version)
    register_driver_model(drivers, alpha=0.07, with_example=False)
    try:
        with serving(settings) as client:
            assert client.get("/ready").json()["model"]["unproven"] is None
        with emptied(settings) as fill, serving(settings) as client:
            assert "input_example" in client.get("/ready").json()["model"]["unproven"]
            request = {"request_id": "r", "driver_ids": [1001]}
            client.post("/scores", json=request)
            assert client.get("/ready").json()["model"]["unproven"] is not None
            fill()
            client.post("/scores", json=request)
            assert client.get("/ready").json()["model"]["unproven"] is None
    finally:
        drivers.promote(before)


def test_a_view_is_served_while_it_is_materialized(drivers: World, tmp_path: Path) -> None:
    from feast.feature_view import FeatureViewState

    settings = with_its_own_definitions(drivers, tmp_path)
    store = open_feature_store(settings)
    view = store.get_feature_view("driver_stats")
    view.state = FeatureViewState.MATERIALIZING
    store.registry.apply_feature_view(view, store.project)
    with serving(settings) as client:
        answer = client.post("/inference", json={"request_id": "r", "driver_ids": [1001]})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("world", "members"), [("customers", ["`customer_ids`", "`entity_rows`"]), ("payments", ["`merchant_id`"])]
)
def test_a_422_names_the_members_and_has_a_request_that_works_like_the_document(
    world: str, members: list[str], request: pytest.FixtureRequest
) -> None:
    with serving(request.getfixturevalue(world).settings_with(**FAST)) as client:

        def refusal() -> dict[str, Any]:
            refused: dict[str, Any] = client.post("/inference", json={"request_id": "r", "keys": [1]}).json()
            return refused

        # The keys of the example are read in the background.
        wait_until(lambda: client.post("/inference", json=refusal()["example"]).status_code == 200, client)
        refused = refusal()
        assert all(member in refused["detail"] for member in ["`keys`", "`request_id`", *members])
        answer = client.post("/inference", json=refused["example"])
        assert answer.status_code == 200, answer.text
        assert answer.json()["excluded"] == []
        body = client.get("/openapi.json").json()["paths"]["/scores"]["post"]["requestBody"]["content"]
        assert body["application/json"]["example"] == refused["example"]


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def ranking_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> World:
    address = f"{redis_server.host}:{redis_server.port}" if request.param == "redis" else None
    return build_ranking_world(tmp_path_factory.mktemp("ranking"), address)


@pytest.fixture(scope="module")
def ranking(ranking_world: World) -> Iterator[TestClient[Any]]:
    with serving(ranking_world.settings_with(**FAST)) as client:
        yield client


def scores(client: TestClient[Any], **members: Any) -> list[dict[str, Any]]:
    answer = client.post("/scores", json={"request_id": "r"} | members)
    assert answer.status_code == 200, answer.text
    return answer.json()["scores"]


def test_candidates_in_a_context_get_the_scores_of_entity_rows(ranking: TestClient[Any]) -> None:
    items = [1003, 9999, 1001, 1003, 1020]
    rows = [{"user_id": 1007, "item_id": item} for item in items]

    in_context = scores(ranking, user_id=1007, item_ids=items)

    assert in_context == scores(ranking, entity_rows=rows)
    assert in_context == [scores(ranking, entity_rows=[row])[0] for row in rows]
    assert [row["reason"] for row in in_context] == [None, "not_found", None, None, None]
    assert {row["reason"] for row in scores(ranking, user_ids=[9999, 1001], item_id=1001)} == {"not_found", None}
    answer = ranking.post("/inference", json={"request_id": "r", "user_id": 1007, "item_ids": items, "top": 9}).json()
    known = [{name: row[name] for name in ("user_id", "item_id", "score")} for row in in_context if row["score"]]
    assert answer["top"] == sorted(known, key=lambda row: -row["score"])


def test_overrides_replace_features(ranking: TestClient[Any]) -> None:
    plain = scores(ranking, user_id=1007, item_ids=[1001, 1002, 9999])
    lower = scores(ranking, user_id=1007, item_ids=[1001, 1002, 9999], overrides={"price": 0.5})
    mixed = scores(
        ranking,
        overrides={"price": 0.5},
        entity_rows=[
            {"user_id": 1007, "item_id": 1001, "overrides": {"price": 99, "budget": 0}},
            {"user_id": 1007, "item_id": 1002},
        ],
    )
    again = scores(ranking, user_id=1007, item_ids=[1001, 1002, 9999])

    assert again == plain
    assert all(one["score"] != other["score"] for one, other in zip(plain[:2], lower[:2], strict=True))
    assert (mixed[1]["score"], lower[2]) == (lower[1]["score"], plain[2])  # of an unknown item, `sold` is missing, too
    assert mixed[0]["score"] not in {plain[0]["score"], lower[0]["score"]}
    refused = ranking.post("/scores", json={"request_id": "r", "item_ids": [1], "user_id": 1, "overrides": {"sold": 1}})
    assert refused.status_code == 422
    assert "unknown field `sold` - at `$.overrides`" in refused.json()["detail"]
    assert "`overrides` (an object with `budget`, `price`)" in refused.json()["detail"]


def test_the_documented_request_in_a_context_is_scored(ranking: TestClient[Any]) -> None:
    documented = ranking.post("/inference", content=code_blocks("clients.md", "JSON")["json"], headers=JSON).json()
    assert (documented["prediction"]["user_id"], documented["excluded"]) == (1007, [])


def test_an_override_with_the_stored_value_gives_the_same_bits(ranking_world: World, ranking: TestClient[Any]) -> None:
    items = pd.read_parquet(ranking_world.settings.feature_repo / "data" / "items.parquet")
    item, price = int(items["item_id"][0]), float(items["price"][0])

    plain = scores(ranking, user_id=1007, item_ids=[item])
    assert scores(ranking, user_id=1007, item_ids=[item], overrides={"price": price}) == plain


def test_ready_names_the_alias_that_is_not_set(drivers: World) -> None:
    with TestClient(create_app(drivers.settings_with(**FAST, SERVING_MODEL_ALIAS="nobody_set_it"))) as client:
        wait_until(lambda: "nobody_set_it" in client.get("/ready").json()["detail"], client)


def test_no_password_in_the_registry_address_is_printed(
    drivers: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    unreachable = {"MLFLOW_TRACKING_URI": f"http://user:a-password@{HOST}:{free_port()}"}
    with TestClient(create_app(drivers.settings_with(**FAST, **unreachable))) as client:
        wait_until(lambda: "did not respond" in client.get("/ready").text, client)
        bodies = [client.get(path).text for path in ("/ready", "/metrics", "/version")]
        bodies.append(client.post("/inference", json={"request_id": "r", "driver_ids": [1001]}).text)
    log = "".join([caplog.text, *capfd.readouterr()])
    assert "did not respond" in log
    assert "a-password" not in "".join([log, *bodies])
