"""A replay of the prediction log finds what was served, and the cause of every difference."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from scoring.errors import StorageError
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.files.location import Location
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.replay import ReplayReport, replay
from serving_assets.assets import monitoring as assets
from serving_assets.resources import Serving
from tests.support.logged_answers import answer_and_log
from tests.support.worlds import World, build_driver_world, register_driver_model

DRIVERS = list(range(1001, 1021))
UNKNOWN_DRIVER = 9999


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_driver_world(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def log(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    answer_and_log(world, folder, [*DRIVERS, UNKNOWN_DRIVER])
    return folder


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "report.parquet"


def replayed(world: World, log: Path, report: Path) -> ReplayReport:
    (day,) = log.iterdir()
    registry, store = MlflowRegistry.from_settings(world.settings), open_feature_store(world.settings)
    return replay(Location(day), world.settings, registry, store, Location(report))


@contextlib.contextmanager
def with_source_rows(world: World, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Iterator[None]:
    """Change the offline store's rows inside the block."""
    file = world.folder / "feature_repo" / "data" / "driver_stats.parquet"
    before = file.read_bytes()
    change(pd.read_parquet(file)).to_parquet(file)
    try:
        yield
    finally:
        file.write_bytes(before)


@contextlib.contextmanager
def with_definitions(world: World, change: Callable[[str], str]) -> Iterator[None]:
    """Change and apply the feature definitions inside the block."""
    file = world.folder / "feature_repo" / "definitions.py"
    before = file.read_text()
    file.write_text(change(before))
    apply_definitions(open_feature_store(world.settings))
    try:
        yield
    finally:
        file.write_text(before)
        apply_definitions(open_feature_store(world.settings))


def new_row(world: World, stats: pd.DataFrame, driver: int, created: pd.Timestamp) -> pd.DataFrame:
    """Add a row for one driver, newer than what was materialized and older than the log."""
    row = stats[stats["driver_id"] == driver].tail(1).assign(conv_rate=0.123, created=created)
    row["event_timestamp"] = pd.Timestamp(world.now) + pd.Timedelta(seconds=1)
    return pd.concat([stats, row])


def test_everything_that_was_served_is_what_batch_computes(world: World, log: Path, report: Path) -> None:
    found = replayed(world, log, report)

    assert (found.rows, found.unanswered, found.different) == (2 * (len(DRIVERS) + 1), 0, 0)
    assert found.versions == {"driver_ranker/1": found.rows}
    assert pq.read_table(report).num_rows == 0


@pytest.mark.parametrize(
    ("created", "cause"),
    [(pd.Timestamp("2020-01-01"), "not_materialized"), (pd.Timestamp("2100-01-01"), "late_row")],
)
def test_a_row_that_the_online_store_did_not_have(
    world: World, log: Path, report: Path, created: pd.Timestamp, cause: str
) -> None:
    with with_source_rows(world, lambda stats: new_row(world, stats, 1001, created)):
        found = replayed(world, log, report)

    assert {name: rows for name, rows in found.causes.items() if rows} == {cause: 2}
    rows = pq.read_table(report).to_pylist()
    named = [(row["request_id"], row["entity"], row["cause"]) for row in rows]
    assert named == [("a", "1001", cause), ("b", "1001", cause)]
    assert rows[0]["logged"] != rows[0]["replayed"]
    assert rows[0]["detail"].startswith("driver_stats: read the row of ")


def test_an_expired_row_is_past_ttl(world: World, tmp_path: Path, report: Path) -> None:
    database = world.folder / "feature_repo" / "data" / "online_store.db"
    before = database.read_bytes()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE rides_driver_stats SET event_ts = event_ts - 2 * 86400")
        connection.commit()
    answer_and_log(world, tmp_path / "log", DRIVERS)
    database.write_bytes(before)

    assert replayed(world, tmp_path / "log", report).causes["past_ttl"] == 2 * len(DRIVERS)


def test_definitions_that_have_changed(world: World, log: Path, report: Path) -> None:
    with with_definitions(world, lambda text: text.replace("timedelta(days=1)", "timedelta(microseconds=1)")):
        assert replayed(world, log, report).causes["definition_changed"] == 2 * len(DRIVERS)


def test_definitions_that_the_version_does_not_read_may_change(world: World, log: Path, report: Path) -> None:
    other = """
other = FeatureView(name="other", entities=[driver], schema=driver_stats.schema, source=driver_stats_source)
other_service = FeatureService(name="other", features=[other])
"""
    late = pd.Timestamp("2100-01-01")
    with (
        with_definitions(world, lambda text: text + other),
        with_source_rows(world, lambda stats: new_row(world, stats, 1001, late)),
    ):
        assert replayed(world, log, report).causes["late_row"] == 2


def test_features_that_are_gone(world: World, log: Path, report: Path) -> None:
    with with_definitions(world, lambda text: text.replace('name="conv_rate"', 'name="renamed_rate"')):
        found = replayed(world, log, report)

    assert found.causes["definition_changed"] == found.rows == 2 * (len(DRIVERS) + 1)
    assert "does not serve its inputs conv_rate" in pq.read_table(report)["detail"][0].as_py()


def test_a_version_that_is_gone(world: World, tmp_path: Path, report: Path) -> None:
    version = register_driver_model(world, alpha=0.01)
    answer_and_log(world, tmp_path / "log", DRIVERS)
    world.promote(1)
    world.client.delete_model_version("driver_ranker", str(version))

    found = replayed(world, tmp_path / "log", report)

    assert found.causes["version_gone"] == found.rows == 2 * len(DRIVERS)
    assert pq.read_table(report)["entity"].to_pylist() == [str(driver) for driver in [*DRIVERS, *DRIVERS]]


def test_a_value_that_came_with_the_request(world: World, tmp_path: Path, report: Path) -> None:
    version = register_driver_model(world)
    world.client.set_model_version_tag("driver_ranker", str(version), "serving.overridable", "conv_rate")
    answer_and_log(world, tmp_path / "log", DRIVERS, overrides={"conv_rate": 0.5})
    world.promote(1)

    found = replayed(world, tmp_path / "log", report)

    assert found.causes["request_input"] == found.rows
    assert pq.read_table(report)["detail"].to_pylist()[0] == '{"conv_rate":0.5}'

    (file,) = (tmp_path / "log").rglob("*.parquet")
    rows = pq.read_table(file, partitioning=None)
    place = rows.column_names.index("__overrides")
    pq.write_table(rows.set_column(place, "__overrides", pa.array(['{"conv_rate":0.25}'] * rows.num_rows)), file)
    assert replayed(world, tmp_path / "log", report).causes["unexplained"] == rows.num_rows


def test_a_difference_without_a_cause_is_unexplained(world: World, log: Path, report: Path, tmp_path: Path) -> None:
    (file,) = log.rglob("*.parquet")
    rows = pq.read_table(file, partitioning=None)
    other = rows["prediction"].to_pylist()
    other[3] = float(other[3]) * (1 + 2**-52)  # the next double
    place = rows.column_names.index("prediction")
    changed = tmp_path / "log" / file.parent.name / file.name
    changed.parent.mkdir(parents=True)
    pq.write_table(rows.set_column(place, "prediction", pa.array(other)), changed)

    assert replayed(world, tmp_path / "log", report).causes["unexplained"] == 1


def test_files_of_one_version_may_have_other_features_of_its_service(
    world: World, log: Path, report: Path, tmp_path: Path
) -> None:
    shutil.copytree(log, tmp_path / "log")
    (file,) = (tmp_path / "log").rglob("*.parquet")
    rows = pq.read_table(file, partitioning=None)
    pq.write_table(rows.append_column("driver_stats__new", pa.nulls(rows.num_rows)), file.with_name("later.parquet"))

    found = replayed(world, tmp_path / "log", report)

    assert (found.rows, found.different) == (2 * rows.num_rows, 0)
    assert found.versions == {"driver_ranker/1": found.rows}


@pytest.mark.parametrize("damage", [b"", b"PAR1" + b"x" * 99 + b"\x20\0\0\0PAR1", None])
def test_a_damaged_file_is_named(world: World, log: Path, report: Path, tmp_path: Path, damage: bytes | None) -> None:
    shutil.copytree(log, tmp_path / "log")
    (file,) = (tmp_path / "log").rglob("*.parquet")
    pages = file.read_bytes()
    file.write_bytes(pages[:4] + b"\xff" * 300 + pages[304:] if damage is None else damage)

    with pytest.raises(StorageError, match=f"^Reading .*{file.name} failed: "):
        replayed(world, tmp_path / "log", report)


def test_a_request_that_failed_is_not_replayed(world: World, log: Path, report: Path, tmp_path: Path) -> None:
    (file,) = log.rglob("*.parquet")
    rows = pq.read_table(file, partitioning=None)
    place = rows.column_names.index("__problem")
    changed = tmp_path / "log" / file.parent.name / file.name
    changed.parent.mkdir(parents=True)
    pq.write_table(rows.set_column(place, "__problem", pa.array(["deadline-exceeded"] * rows.num_rows)), changed)

    found = replayed(world, tmp_path / "log", report)
    assert (found.rows, found.unanswered) == (0, rows.num_rows)


def test_the_assets_report_the_causes_and_fail_the_check_on_an_unexplained_difference(
    world: World, log: Path, tmp_path: Path, dagster_home: Path
) -> None:
    shutil.copytree(log, tmp_path / "log")
    (day,) = (folder.name.removeprefix("date=") for folder in log.iterdir())
    environment = world.environment | {"SERVING_PREDICTION_LOG": str(tmp_path / "log")}
    results = [materialized(environment, day)]
    (file,) = (tmp_path / "log").rglob("date=*/*.parquet")
    rows = pq.read_table(file, partitioning=None)
    place = rows.column_names.index("prediction")
    pq.write_table(rows.set_column(place, "prediction", pc.add(rows["prediction"], 1)), file)
    results.append(materialized(environment, day))

    evaluations = [result.get_asset_check_evaluations() for result in results]
    checks = [check for each in evaluations for check in each if check.check_name == "differences_explained"]
    assert [check.passed for check in checks] == [True, False]
    assert checks[1].description == "40 of 42 rows differ; 40 without a known cause"
    (logged,) = results[0].asset_materializations_for_node("prediction_log")
    assert logged.metadata["dagster/row_count"].value == 42
    (replayed,) = results[1].asset_materializations_for_node("replay")
    assert replayed.metadata["different_rows"].value == 40
    assert "| unexplained | 40 |" in replayed.metadata["causes"].value
    assert replayed.metadata["plot"].value.startswith("![Rows by cause](data:image/png;base64,")


def materialized(environment: dict[str, str], day: str) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [assets.prediction_log, assets.replay],
            instance=instance,
            partition_key=day,
            resources={"serving": Serving(environment)},
        )


def test_a_day_without_rows_has_nothing_to_replay(world: World, tmp_path: Path, dagster_home: Path) -> None:
    result = materialized(world.environment | {"SERVING_PREDICTION_LOG": str(tmp_path)}, "2026-01-02")

    (logged,) = result.asset_materializations_for_node("prediction_log")
    assert logged.metadata["dagster/row_count"].value == 0
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "differences_explained"]
    assert check.passed
    assert check.description == "0 of 0 rows differ; 0 without a known cause"
