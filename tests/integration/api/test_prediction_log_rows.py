"""The rows of the prediction log on real stores, in Feast's own logging schema."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from feast import FeatureService
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
from litestar.testing import TestClient

from api.app import create_app
from api.model.loading import RegistryLoader
from scoring.features.feature_store import open_feature_store
from scoring.models.admission import validate
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.prediction_log import NOT_FOUND, PRESENT
from tests.support import servers
from tests.support.worlds import World, build_customer_world, build_driver_world, build_payment_world

WORLDS = {"drivers": build_driver_world, "customers": build_customer_world, "payments": build_payment_world}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return WORLDS[request.param](tmp_path_factory.mktemp(request.param))


def test_logged_rows_have_feasts_schema_and_the_values_that_feast_reads(world: World, tmp_path: Path) -> None:
    settings = world.settings_with(SERVING_DEADLINE_S="5", SERVING_PREDICTION_LOG=str(tmp_path / "log"))
    registry = MlflowRegistry.from_settings(settings)
    loader = RegistryLoader(settings, registry, lambda files, rows: validate(files, rows)[1])
    with TestClient(create_app(settings, loader)) as client:
        servers.wait_until(lambda: client.get("/ready").status_code == 200, lambda: client.get("/ready").text)
        document = client.get("/openapi.json").json()
        example = document["paths"]["/scores"]["post"]["requestBody"]["content"]["application/json"]["example"]
        answer = client.post("/scores", json=example).json()

    rows = ds.dataset(tmp_path / "log", partitioning="hive").to_table()
    store = open_feature_store(settings)
    name = store.registry.list_feature_services(store.project)[0].name
    service = store.get_feature_service(name)
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    feast_rows = rows.select(schema.names).cast(schema)  # Parquet has no type for seconds
    assert [row.get("score", row.get("outputs")) for row in answer["scores"]] == rows["prediction"].to_pylist()
    assert rows["reason"].to_pylist() == [row["reason"] for row in answer["scores"]]
    assert_same_as_feast_reads(rows, store, service)
    feast_takes_them(feast_rows, store, service, tmp_path / "feast")


def assert_same_as_feast_reads(rows: pa.Table, store: Any, service: FeatureService) -> None:
    keys = [name for name in rows.column_names if "__" not in name and not name.startswith("model_")]
    entity_rows = rows.select([name for name in keys if name not in {"prediction", "reason", "date"}]).to_pylist()
    read = store.get_online_features(service, entity_rows, full_feature_names=True).to_dict()
    for projection in service.feature_view_projections:
        for feature in projection.features:
            column = f"{projection.name_to_use()}__{feature.name}"
            statuses = rows[f"{column}__status"].to_pylist()
            if not set(statuses) & {PRESENT, NOT_FOUND}:
                continue  # the model does not use it
            logged = rows[column].to_pylist()
            assert logged == [
                value if status == PRESENT else None for value, status in zip(read[column], statuses, strict=True)
            ]


def feast_takes_them(rows: pa.Table, store: Any, service: FeatureService, folder: Path) -> None:
    folder.mkdir()
    service.logging_config = LoggingConfig(FileLoggingDestination(path=str(folder)))
    store.write_logged_features(rows, service)
    now = dt.datetime.now(dt.UTC)
    job = store._get_provider().retrieve_feature_service_logs(
        service, now - dt.timedelta(days=1), now + dt.timedelta(days=1), store.config, store.registry
    )
    assert job.to_arrow().num_rows == rows.num_rows
