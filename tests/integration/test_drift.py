"""Drift of what the API serves and logs: from a training baseline, or from the first day of a version's log."""

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.model.loading import RegistryLoader
from scoring.models.admission import validate
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.baseline import BASELINE_FILE, log_baseline
from serving_assets.assets import monitoring as assets
from serving_assets.resources import Serving
from tests.support import servers
from tests.support.worlds import DRIVER_INPUTS, World, build_driver_world, register_driver_model

DRIVERS = list(range(1001, 1021))
REQUESTS = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_driver_world(tmp_path_factory.mktemp("drivers"))


def model_id(world: World, version: int) -> str:
    source = world.client.get_model_version(world.settings.model_name, str(version)).source
    return str(source.removeprefix("models:/"))


@pytest.fixture(scope="module")
def trained(world: World) -> int:
    """A version whose training data had other acceptance rates, and no nulls."""
    version = register_driver_model(world, alpha=0.01)
    stats = pd.read_parquet(world.folder / "feature_repo" / "data" / "driver_stats.parquet")
    newest = stats.sort_values("event_timestamp").groupby("driver_id").last()
    features = pd.concat([newest[DRIVER_INPUTS]] * REQUESTS).assign(acc_rate=lambda rows: rows["acc_rate"] + 1)
    log_baseline(model_id(world, version), features, features["conv_rate"])
    return version


def serve(world: World, log: Path) -> dict[tuple[str, str], float]:
    """Answer requests with the prediction log on. Return the metrics of drift: name and column → value."""
    settings = world.settings_with(
        SERVING_DEADLINE_S="5", SERVING_PREDICTION_LOG=str(log), SERVING_PREDICTION_LOG_SECONDS="0.5"
    )
    registry = MlflowRegistry.from_settings(settings)
    loader = RegistryLoader(settings, registry, lambda files, rows: validate(files, rows)[1])

    def metrics(client: TestClient[Any]) -> dict[tuple[str, str], float]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        drift = [family for family in families if family.name.startswith("serving_drift_")]
        return {
            (sample.name.removeprefix("serving_drift_"), sample.labels["column"]): sample.value
            for family in drift
            for sample in family.samples
        }

    with TestClient(create_app(settings, loader)) as client:
        servers.wait_until(lambda: client.get("/ready").status_code == 200, lambda: client.get("/ready").text)
        for number in range(REQUESTS):
            drivers = DRIVERS if number else [*DRIVERS[:-1], 9999]
            client.post("/scores", json={"request_id": str(number), "driver_ids": drivers}).raise_for_status()
        written = f'rows_total{{result="written"}} {REQUESTS * len(DRIVERS):.1f}'
        servers.wait_until(lambda: written in client.get("/metrics").text, "the log is written")
        return metrics(client)


def check(world: World, log: Path, day: str) -> tuple[dg.AssetCheckEvaluation, dict[str, Any]]:
    """Materialize the asset of the log of one day. Return the evaluation of its check, and its metadata."""
    resources = {"serving": Serving(world.environment | {"SERVING_PREDICTION_LOG": str(log)})}
    result = dg.materialize([assets.prediction_log], partition_key=day, resources=resources)
    (evaluation,) = result.get_asset_check_evaluations()
    (event,) = result.asset_materializations_for_node("prediction_log")
    return evaluation, event.metadata


def test_drift_from_training_is_in_the_metrics_and_in_the_check_of_the_log(
    world: World, trained: int, tmp_path: Path
) -> None:
    world.promote(trained)

    found = serve(world, tmp_path)

    assert {column for _, column in found} == {*DRIVER_INPUTS, "prediction"}
    assert found["psi", "acc_rate"] > 1
    assert found["psi", "conv_rate"] < 0.1
    assert found["null_ratio", "acc_rate"] == found["null_ratio", "prediction"] == 1 / (REQUESTS * len(DRIVERS))
    (folder,) = tmp_path.iterdir()
    evaluation, metadata = check(world, tmp_path, folder.name.removeprefix("date="))
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert evaluation.description.endswith("; relative to: training")
    assert f"acc_rate has PSI {found['psi', 'acc_rate']:.3f} (0.25 allowed)" in evaluation.description
    assert "conv_rate" not in evaluation.description
    assert "| acc_rate | " in metadata[f"drift of driver_ranker/{trained}"].value
    assert not (tmp_path / "_baseline").exists()


def test_without_a_training_baseline_the_first_day_of_the_log_is_the_baseline_and_is_named(
    world: World, tmp_path: Path
) -> None:
    world.promote(1)
    assert serve(world, tmp_path) == {}
    (folder,) = tmp_path.iterdir()
    later = folder.name.removeprefix("date=")
    first = str(dt.date.fromisoformat(later) - dt.timedelta(days=1))
    shutil.copytree(folder, tmp_path / f"date={first}")
    for file in folder.iterdir():
        rows = pq.read_table(file)
        place = rows.column_names.index("driver_stats__acc_rate")
        moved = pa.array([2.0] * 150 + [None] * 50, rows.schema.field(place).type)
        pq.write_table(rows.set_column(place, rows.schema.field(place), moved[: rows.num_rows]), file)

    same, _ = check(world, tmp_path, first)
    moved, _ = check(world, tmp_path, later)

    assert same.passed
    assert same.description.startswith("largest PSI 0.000 (")
    assert same.description.endswith(f"; relative to: the first day of its log, {first}")
    assert not moved.passed
    assert moved.description.startswith("acc_rate has PSI ")
    assert "acc_rate is null in 25.0% of the rows (0.5% in the baseline, 10.0% more allowed)" in moved.description
    assert moved.description.endswith(f"relative to: the first day of its log, {first}")
    assert serve(world, tmp_path)["psi", "acc_rate"] < 0.1  # the API reads it with the next version that it loads


def test_a_baseline_that_cannot_be_read_is_none_and_the_version_serves(world: World, tmp_path: Path) -> None:
    version = register_driver_model(world, alpha=0.02)
    (tmp_path / BASELINE_FILE).write_text(
        '{"rows": 1, "columns": {"acc_rate": {"values": 1, "nulls": 0, "shares": []}}}'
    )
    world.client.log_model_artifact(model_id(world, version), str(tmp_path / BASELINE_FILE))

    assert serve(world, tmp_path / "log") == {}
