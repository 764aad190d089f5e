"""The asset graph in this process, against real Feast stores and real MLflow registries on SQLite."""

import datetime as dt
import json

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from scoring.batch.engine import LocalEngine
from scoring.files.transfer import content_of
from serving_assets.assets.model_version import version_recorded_in_run
from serving_assets.definitions import definitions
from serving_assets.records.observations import refused_in_run
from serving_assets.resources import Serving
from tests.support.graph import Graph, driver_rows, failure, metadata
from tests.support.worlds import build_driver_world, register_driver_model


@pytest.fixture(scope="module")
def driver_world(tmp_path_factory):
    world = build_driver_world(tmp_path_factory.mktemp("drivers"))
    register_driver_model(world, alpha=0.1, promote=False)
    return world


@pytest.fixture
def drivers(driver_world, tmp_path):
    """Versions 1 (champion) and 2, and one request of three drivers, one of them unknown."""
    driver_world.promote(1)
    graph = Graph(driver_world, tmp_path)
    graph.write_request(driver_rows(driver_world, [1003, 9999, 1001]))
    return graph


def test_the_whole_graph_scores_a_request_in_its_order_and_reports_what_it_did(drivers):
    drivers.environment |= {
        "SERVING_BATCH_REQUESTS": drivers.requests.as_uri(),
        "SERVING_ARTIFACTS": drivers.artifacts.as_uri(),
    }
    result = drivers.run("serve_batch")

    assert result.success
    rows = drivers.output()
    assert [(row["driver_id"], row["order"], row["reason"]) for row in rows] == [
        (1003, "order-0", None),
        (9999, "order-1", "not_found"),
        (1001, "order-2", None),
    ]
    assert {(row["model_name"], row["model_version"], row["feature_service"]) for row in rows} == {
        ("driver_ranker", 1, "driver_ranking")
    }
    written = json.loads((drivers.artifacts / "registered_model_version.json").read_text())
    assert (written["name"], written["version"], written["alias"]) == ("driver_ranker", 1, "champion")
    assert metadata(result, "registered_model_version")["chosen_by"] == "alias champion"
    found = metadata(result, "batch_output")
    assert (found["dagster/row_count"], found["rows_scored"], found["rows_not_scored"]) == (3, 2, 1)
    assert "not_found | 1" in found["reasons"]
    assert "order-0" in found["preview"]
    assert [column.name for column in found["dagster/column_schema"].columns][-1] == "feature_service"
    assert found["dagster/uri"] == str(drivers.file("batch_output.parquet"))
    (until,) = metadata(result, "online_store")["watermarks"].values()
    assert dt.datetime.fromisoformat(until) >= drivers.world.now


def test_a_run_launched_for_a_request_that_no_sensor_has_found_adds_its_partition_or_names_the_folder(drivers):
    launched = {"dagster/partition": "day2"}
    result = drivers.run(tags=launched)
    assert f"{drivers.requests / 'day2'}: there is no such file with one of the extensions .csv" in failure(result)
    assert refused_in_run(drivers.instance, result.run_id) == {"day2"}
    assert "day2" not in drivers.instance.get_dynamic_partitions("batch_requests")

    (drivers.requests / "day2.CSV").write_text(driver_rows(drivers.world, [1003]))
    assert drivers.run(tags=launched).success
    assert "day2" in drivers.instance.get_dynamic_partitions("batch_requests")
    assert [row["driver_id"] for row in drivers.output("day2")] == [1003]


@pytest.mark.parametrize(
    ("pin", "version", "only", "problem"),
    [
        ("2", None, None, None),
        ("2", 2, None, None),
        ("2", 1, None, "is '2', and its configuration pins version 1: remove one of them."),
        ("v2", None, None, "is 'v2', which is not the number of a model version, such as 7."),
        ("99", None, None, "Registered model 'driver_ranker' has no version 99: choose an existing one"),
        # As in a backfill of the three assets, in which the model version has its own run.
        ("2", None, ["batch_input", "batch_output"], None),
        ("v2", None, ["batch_input", "batch_output"], "which is not the number of a model version"),
    ],
)
def test_the_tag_of_a_backfill_pins_a_version(drivers, pin, version, only, problem):
    result = drivers.run(tags={"serving/version": pin, "dagster/partition": "day1"}, version=version, only=only)
    if problem is None:
        assert {row["model_version"] for row in drivers.output()} == {2}
        assert metadata(result, "batch_output")["chosen_by"] == "pinned by the run"
    else:
        assert problem in failure(result)
        assert not drivers.file("batch_input.parquet").exists()


def test_everyone_is_written_as_a_request_which_is_scored_as_any_other(drivers):
    as_of = drivers.world.now.isoformat()
    result = definitions.resolve_job_def("request_everyone").execute_in_process(
        {"ops": {"everyone": {"config": {"as_of": as_of}}}}, resources={"serving": Serving(drivers.environment)}
    )
    assert result.success
    (file,) = drivers.requests.glob("everyone-*.parquet")
    assert drivers.run(tags={"dagster/partition": file.stem}).success
    rows = drivers.output(file.stem)
    assert [row["driver_id"] for row in rows] == sorted({row["driver_id"] for row in rows})
    assert {row["reason"] for row in rows} == {None}
    assert {row["event_timestamp"] for row in rows} == {drivers.world.now}


def test_everyone_names_a_missing_folder_and_does_not_create_it(drivers, tmp_path):
    missing = tmp_path / "missing"
    result = definitions.resolve_job_def("request_everyone").execute_in_process(
        resources={"serving": Serving(drivers.environment | {"SERVING_BATCH_REQUESTS": str(missing)})},
        raise_on_error=False,
    )
    assert "there is no such folder: create it, or set SERVING_BATCH_REQUESTS." in failure(result)
    assert not missing.exists()


def test_an_apply_that_changes_nothing_makes_nothing_stale(drivers):
    drivers.run("serve_batch")

    drivers.run("serve_batch", only=["feast_registry"])

    assert not drivers.stale("online_store")
    assert not drivers.stale("batch_input", "day1")
    assert not drivers.stale("batch_output", "day1")


def test_definitions_that_were_applied_outside_of_dagster_are_recorded_by_the_run_that_reads_them(drivers):
    assert drivers.run().success

    found = drivers.instance.get_latest_materialization_event(dg.AssetKey("feast_registry"))
    assert found.asset_materialization.metadata["applied_by"].value == "outside Dagster"
    assert not drivers.stale("batch_input", "day1")
    assert not drivers.stale("batch_output", "day1")

    drivers.run("serve_batch")
    drivers.run()
    records = drivers.instance.fetch_materializations(dg.AssetKey("feast_registry"), limit=10).records
    assert [each.asset_materialization.metadata["applied_by"].value for each in records] == [
        "this asset",
        "outside Dagster",
    ]

    another = dg.AssetMaterialization("feast_registry", tags={"dagster/data_version": "0" * 64})
    drivers.instance.report_runless_asset_event(another)
    assert drivers.stale("batch_input", "day1")
    assert drivers.run().success
    assert not drivers.stale("batch_input", "day1")


def test_the_same_run_again_writes_the_same_bytes_and_makes_nothing_stale(drivers):
    drivers.run()
    before = drivers.file("batch_output.parquet").read_bytes()

    drivers.run(only=["registered_model_version", "batch_input"])
    assert not drivers.stale("batch_output", "day1")
    drivers.run()

    assert drivers.file("batch_output.parquet").read_bytes() == before


def test_an_output_made_again_from_an_older_input_reports_that_and_is_still_stale(drivers):
    drivers.run()
    drivers.world.promote(2)
    drivers.run(only=["registered_model_version"])

    result = drivers.run(only=["batch_output"])

    assert {row["model_version"] for row in drivers.output()} == {1}
    chosen = "batch_input was made for it; alias champion now names driver_ranker/2"
    assert metadata(result, "batch_output")["chosen_by"] == chosen
    assert drivers.stale("batch_output", "day1")
    drivers.run()
    assert not drivers.stale("batch_output", "day1")


def test_a_run_without_a_version_uses_neither_another_runs_pin_nor_an_earlier_version_of_the_alias(drivers):
    result = drivers.run(version=2)
    for asset in ("registered_model_version", "batch_output"):
        assert metadata(result, asset)["chosen_by"] == "pinned by the run"
    before = drivers.file("batch_output.parquet").read_bytes()
    inputs_alone = ["batch_input", "batch_output"]

    refused = failure(drivers.run(only=inputs_alone))
    assert (
        "last materialized with driver_ranker/2 (a run pinned it), but alias champion now names driver_ranker/1"
        in refused
    )
    assert "config: {version: 2}" in refused
    assert drivers.file("batch_output.parquet").read_bytes() == before

    drivers.world.promote(2)
    result = drivers.run(only=inputs_alone)
    assert result.success
    assert {row["model_version"] for row in drivers.output()} == {2}
    chosen = "registered_model_version as last materialized, and alias champion"
    assert metadata(result, "batch_input")["chosen_by"] == chosen

    drivers.world.promote(1)
    assert "a run pinned it" in failure(drivers.run(only=inputs_alone))
    assert drivers.run(only=["batch_output"]).success  # as when a run is taken up again: its own inputs decide


def test_two_runs_that_pin_different_versions_do_not_mix(drivers):
    class Interrupted(Serving):
        """Another run pins version 2 while the online store is materialized: between two steps of this run."""

        opened = 0

        def open_feature_store(self):
            self.opened += 1
            if self.opened == 2:
                drivers.run(version=2, only=["registered_model_version"])
            return super().open_feature_store()

    serving = Interrupted(drivers.environment)
    result = drivers.run("serve_batch", version=1, serving=serving)

    assert result.success
    assert serving.opened > 2
    assert json.loads((drivers.artifacts / "registered_model_version.json").read_text())["version"] == 2
    assert {row["model_version"] for row in drivers.output()} == {1}


def test_an_input_that_another_run_made_for_another_version_is_refused(drivers):
    drivers.run(version=1)
    before = drivers.file("batch_output.parquet").read_bytes()

    result = drivers.run(version=2, only=["registered_model_version", "batch_output"])

    assert "was made for model version driver_ranker/1, and this run uses driver_ranker/2" in failure(result)
    assert drivers.file("batch_output.parquet").read_bytes() == before


def test_a_run_that_is_re_executed_after_a_failure_keeps_its_version(drivers):
    (drivers.requests / "day1.csv").write_text("driver_id\n1001\n")
    failed = drivers.run(version=2)
    drivers.run(version=1, only=["registered_model_version"])
    job = definitions.resolve_job_def("score_batch")

    again = drivers.instance.create_run_for_job(job, parent_run_id=failed.run_id, root_run_id=failed.run_id)

    kept = version_recorded_in_run(drivers.instance, again.run_id, "driver_ranker")
    assert (kept.name, kept.version, kept.by) == ("driver_ranker", 2, "pinned by the run")


def test_a_bad_request_fails_in_one_line_and_its_old_files_stay(drivers):
    rows = (drivers.requests / "day1.csv").read_text()
    (drivers.requests / "day1.csv").write_text("driver_id,event_timestamp\n1001,2026-01-01\n1002,soon\n")
    text = failure(drivers.run())

    assert f"{drivers.requests / 'day1.csv'}, column 'event_timestamp', row 2: 'soon'" in text
    assert "\n" not in text
    assert [file.name for file in drivers.artifacts.rglob("*")] == ["registered_model_version.json"]

    (drivers.requests / "day1.csv").write_text(rows)
    drivers.run()
    before = {file: file.read_bytes() for file in drivers.artifacts.rglob("*.parquet")}
    (drivers.requests / "day1.csv").write_text("driver,event_timestamp\n1001,2026-01-01\n")
    assert "column 'driver_id': this column is missing" in failure(drivers.run())
    assert {file: file.read_bytes() for file in drivers.artifacts.rglob("*.parquet")} == before


class BreaksFor(LocalEngine):
    """An engine that raises an unexpected error for one request."""

    def write_input(self, request, *others):
        if request.place.endswith("day6.csv"):
            raise OverflowError("an unexpected value")
        return super().write_input(request, *others)


def test_the_bad_requests_of_a_run_are_named_with_their_reasons_and_the_others_are_joined(drivers):
    drivers.write_request("driver_id\n1001\n", "day2")
    drivers.write_request(driver_rows(drivers.world, [1002]), "day3")
    drivers.write_request("driver_id,event_timestamp\n1001,soon\n", "day4")
    drivers.write_request(driver_rows(drivers.world, []), "day5")
    drivers.write_request(driver_rows(drivers.world, [1002]), "day6")
    drivers.write_request(driver_rows(drivers.world, [1002]), "day7")
    drivers.artifacts.mkdir()
    (drivers.artifacts / "day7").write_text("another file")
    drivers.write_request(driver_rows(drivers.world, [1003]), "day8")
    tags = {"dagster/asset_partition_range_start": "day1", "dagster/asset_partition_range_end": "day8"}
    serving = Serving(drivers.environment)
    serving.engine = BreaksFor()

    result = drivers.run(tags=tags, serving=serving)

    text = failure(result)
    assert "4 of the run's 8 requests can't be scored. day2: Batch request" in text
    assert "day2.csv, column 'event_timestamp': this column is missing" in text
    assert "The sensor score_the_others starts a run for the other requests." in text
    assert "day4.csv, column 'event_timestamp', row 1: 'soon'" in text
    assert "day6: OverflowError was raised (an unexpected value)" in text
    assert "day7: a file or folder at this path conflicts" in text.replace("'", "")
    assert "\n" not in text
    (event,) = [event for event in result.all_events if event.is_step_failure]
    refused = event.step_failure_data.user_failure_data.metadata["refused"].value
    assert [line.split(" | ")[0] for line in refused.splitlines()[2:]] == ["| day2", "| day4", "| day6", "| day7"]
    assert refused_in_run(drivers.instance, result.run_id) == {"day2", "day4", "day6", "day7"}
    observed = [
        event.event_specific_data.asset_observation for event in result.all_events if event.is_asset_observation
    ]
    reasons = {each.partition: each.description for each in observed if each.partition in {"day2", "day4"}}
    assert "day2.csv, column 'event_timestamp': this column is missing" in reasons["day2"]
    assert "day4.csv, column 'event_timestamp', row 1: 'soon'" in reasons["day4"]
    assert all(drivers.file("batch_input.parquet", key).exists() for key in ("day1", "day3", "day5", "day8"))
    (stale,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "stale_features"]
    assert "day5 | passed | past their time to live" in stale.metadata["found"].value


def test_many_requests_are_scored_by_one_run_each_with_its_own_numbers(drivers):
    drivers.write_request(driver_rows(drivers.world, [1002, 1004]), "day2")
    tags = {"dagster/asset_partition_range_start": "day1", "dagster/asset_partition_range_end": "day2"}

    result = drivers.run("serve_batch", tags=tags)

    assert result.success
    for key in ("day1", "day2"):
        assert not drivers.stale("batch_input", key)
        assert not drivers.stale("batch_output", key)
    events = result.asset_materializations_for_node("batch_output")
    rows = {event.partition: event.metadata["dagster/row_count"].value for event in events}
    assert rows == {"day1": 3, "day2": 2}


def test_a_version_that_cannot_be_used_fails_the_run_with_the_reason_and_the_old_output_stays(drivers):
    drivers.run()
    before = drivers.file("batch_output.parquet").read_bytes()
    version = register_driver_model(drivers.world, inputs=["acc_rate", "speed", "mood"], promote=False)

    assert "does not serve its inputs speed, mood" in failure(drivers.run(version=version))
    drivers.world.client.delete_model_version("driver_ranker", str(version))
    assert failure(drivers.run(version=version)) == (
        f"Registered model 'driver_ranker' has no version {version}: choose an existing one, or omit it to use "
        "the one under the alias."
    )
    assert drivers.file("batch_output.parquet").read_bytes() == before


def test_a_wrong_setting_fails_the_run_with_the_variable_and_the_allowed_values(drivers):
    drivers.environment["SERVING_MISSING_FEATURES"] = "guess"

    text = failure(drivers.run())

    assert text.startswith("SERVING_MISSING_FEATURES is 'guess'")
    assert "exclude | reject | impute" in text


def test_without_a_resolved_version_batch_input_names_the_remedy(drivers):
    text = failure(drivers.run(only=["batch_input"]))

    assert "registered_model_version.json does not exist: materialize registered_model_version before" in text


def test_the_scores_table_has_what_batch_output_has_and_a_type_conflict_is_refused(drivers, tmp_path):
    place = tmp_path / "scores"
    drivers.environment |= {"SERVING_SCORES_TABLE": str(place)}
    drivers.write_request(driver_rows(drivers.world, [1002]), "day2")

    for key in ("day1", "day2"):
        assert drivers.run(key=key).success
    again = drivers.run()
    found = metadata(drivers.run(version=2), "scores_table")

    assert metadata(again, "scores_table")["committed"] is False
    assert (found["table_version"], found["committed"], found["model"]) == (2, True, "driver_ranker/2")
    assert found["content_sha256"] == content_of(drivers.file("batch_output.parquet"), "").sha256
    rows = DeltaTable(place).to_pyarrow_table(filters=[("batch_request", "=", "day1")])
    assert rows.drop_columns("batch_request").to_pylist() == drivers.output()

    pq.write_table(
        pa.table({"driver_id": [1001], "event_timestamp": [drivers.world.now], "order": [7]}),
        drivers.requests / "day3.parquet",
    )
    drivers.instance.add_dynamic_partitions("batch_requests", ["day3"])
    conflict = drivers.run(key="day3")
    assert "Batch request day3, column 'order': " in failure(conflict)
    assert f"its type is string in {place}, and long in the result" in failure(conflict)
    assert DeltaTable(place).version() == 2
