import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml

from serving_assets.assets.scores_table import scores_table
from serving_assets.definitions import assets, definitions, schedules, settings_or_defaults

ROOT = Path(__file__).resolve().parents[3]
SLOW_TO_IMPORT = ("feast", "mlflow", "sklearn", "pandas", "skops", "litestar", "matplotlib", "duckdb")


def test_importing_the_code_location_loads_no_slow_library_and_does_not_warn():
    program = (
        f"import sys, serving_assets.definitions\nprint([name for name in {SLOW_TO_IMPORT!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_settings_in_a_file_of_the_working_directory_are_reported(tmp_path):
    (tmp_path / ".env").write_text("SERVING_MODEL_NAME=another\nPOSTGRES_PASSWORD=secret\n")

    program = "import serving_assets.definitions"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip

    assert f"{tmp_path / '.env'} sets SERVING_MODEL_NAME. " in done.stderr
    assert "secret" not in done.stderr


def test_the_code_location_can_be_loaded():
    dg.Definitions.validate_loadable(definitions)


@pytest.mark.parametrize("place", ["serving_assets", "demo", "deploy"])
def test_each_configured_instance_sends_no_telemetry_and_ends_runs_whose_process_is_lost(place):
    described = yaml.safe_load((ROOT / place / "dagster.yaml").read_text())

    assert (described["telemetry"], described["nux"]) == ({"enabled": False}, {"enabled": False})
    assert described["run_monitoring"]["enabled"]
    assert described["run_monitoring"]["max_runtime_seconds"] == 6 * 3600


def test_the_documented_instance_for_one_machine_can_be_opened(tmp_path):
    shutil.copy(ROOT / "serving_assets" / "dagster.yaml", tmp_path)

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 1
    assert "cp -n serving_assets/dagster.yaml $DAGSTER_HOME/" in (ROOT / "docs" / "batch.md").read_text()


def test_every_asset_has_a_description_owners_kinds_and_a_group():
    assets = definitions.resolve_asset_graph()

    for key in assets.materializable_asset_keys:
        node = assets.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key
        assert node.group_name != "default", key


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"SERVING_MODEL_NAME": "m", "SERVING_BATCH_OWNERS": "team:risk, ann@bank.example"},
            ("team:risk", "ann@bank.example"),
        ),
        ({"SERVING_MODEL_NAME": "m"}, ("team:ml-serving",)),
        ({"SERVING_MODEL_NAME": "m", "SERVING_BATCH_OWNERS": "ann"}, ("team:ml-serving",)),
        ({}, ("team:ml-serving",)),
    ],
)
def test_owners_are_a_setting_and_a_wrong_one_does_not_prevent_loading(environment, expected):
    assert settings_or_defaults(environment).batch_owners == expected


def test_sensors_run_by_default():
    for name in ("new_model_version", "new_batch_request", "score_the_others"):
        assert definitions.resolve_sensor_def(name).default_status is dg.DefaultSensorStatus.RUNNING


@pytest.mark.parametrize(("name", "cron"), [("hourly_online_store", "5 * * * *"), ("daily_everyone", "0 1 * * *")])
def test_schedules_are_stopped_by_default(name, cron):
    schedule = definitions.resolve_schedule_def(name)

    assert schedule.cron_schedule == cron
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    on = {"SERVING_MODEL_NAME": "m", "SERVING_SCHEDULES": name}
    assert [each.name for each in schedules(on) if each.default_status is dg.DefaultScheduleStatus.RUNNING] == [name]


@pytest.mark.parametrize("value", [None, "", "scores"])
def test_the_scores_table_is_in_the_graph_and_in_the_jobs_if_its_location_is_set(value):
    found = assets({"SERVING_SCORES_TABLE": value} if value is not None else {})

    assert (scores_table in found) == (value == "scores")
    loaded = dg.Definitions(assets=found, jobs=definitions.jobs, resources=definitions.resources)
    for job in ("score_batch", "serve_batch"):
        keys = loaded.resolve_job_def(job).asset_layer.selected_asset_keys
        assert (scores_table.key in keys) == (value == "scores")


def test_everyone_is_scored_as_of_the_midnight_before_the_tick():
    tick = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 30, 1, tzinfo=UTC))

    (run,) = definitions.resolve_schedule_def("daily_everyone").evaluate_tick(tick).run_requests
    assert run.run_config == {"ops": {"everyone": {"config": {"as_of": "2026-11-30"}}}}


@pytest.mark.parametrize("value", [None, "", "log"])
def test_the_replay_of_the_day_before_the_tick_is_scheduled_if_there_is_a_log(value):
    environment = {"SERVING_PREDICTION_LOG": value} if value is not None else {}
    assert ("daily_replay" in {each.name for each in schedules(environment)}) == (value == "log")

    environment = {"SERVING_PREDICTION_LOG": "log"}
    loaded = dg.Definitions(
        assets=assets(environment), schedules=schedules(environment), resources=definitions.resources
    )
    schedule = loaded.resolve_schedule_def("daily_replay")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    tick = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 12, 1, 0, 30, tzinfo=UTC), repository_def=loaded.get_repository_def()
    )
    (run,) = schedule.evaluate_tick(tick).run_requests
    assert run.partition_key == "2026-11-30"
    keys = loaded.resolve_job_def("replay_day").asset_layer.selected_asset_keys
    assert {key.to_user_string() for key in keys} == {"prediction_log", "replay"}
