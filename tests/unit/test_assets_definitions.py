import subprocess
import sys

import dagster as dg
import pytest

from serving_assets.definitions import definitions, owners

SLOW_TO_IMPORT = ("feast", "mlflow", "sklearn", "pandas", "skops", "litestar", "matplotlib", "duckdb")


def test_importing_the_code_location_loads_none_of_the_slow_libraries():
    program = (
        f"import sys, serving_assets.definitions\nprint([name for name in {SLOW_TO_IMPORT!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


def test_the_code_location_can_be_loaded():
    dg.Definitions.validate_loadable(definitions)


def test_every_asset_says_what_it_is_and_whose():
    assets = definitions.resolve_asset_graph()

    for key in assets.materializable_asset_keys:
        node = assets.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key
        assert node.group_name != "default", key


@pytest.mark.parametrize(
    ("environment", "shown"),
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
def test_owners_are_a_setting_and_a_wrong_one_does_not_keep_the_code_location_from_loading(environment, shown):
    assert owners(environment) == shown


def test_sensors_run_unless_somebody_stops_them():
    for name in ("new_model_version", "new_batch_request", "score_the_others"):
        assert definitions.resolve_sensor_def(name).default_status is dg.DefaultSensorStatus.RUNNING


def test_the_online_store_has_a_schedule_which_somebody_must_start():
    schedule = definitions.resolve_schedule_def("hourly_online_store")

    assert schedule.cron_schedule == "5 * * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
