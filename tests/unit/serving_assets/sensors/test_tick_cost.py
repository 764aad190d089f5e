"""What an idle tick of new_model_version costs, in a process of its own, as in Dagster's code server."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.rest_registry import Server

PROGRAM = """
import sys, time
import dagster as dg
from serving_assets.definitions import definitions
from serving_assets.resources import Serving

sensor = definitions.resolve_sensor_def("new_model_version")
with dg.DagsterInstance.ephemeral() as instance:
    cursor = sys.argv[1]
    for _ in range(3):
        started = time.monotonic()
        context = dg.build_sensor_context(
            instance=instance,
            cursor=cursor,
            repository_def=definitions.get_repository_def(),
            sensor_name=sensor.name,
            resources={"serving": Serving()},
        )
        tick = sensor(context)
        cursor = tick.cursor
    loaded = [name for name in ("mlflow", "feast", "pandas", "sklearn", "duckdb") if name in sys.modules]
    print(tick.skip_reason.skip_message, loaded, time.monotonic() - started < 1, sep=" | ")
"""


HANDLED = {"data_version": "ranker:7", "created_ms": 1_700_000_000_000}


def idle_tick(cursor: dict[str, object], registry: str) -> list[str]:
    """What the third tick says, which slow libraries the three loaded, and whether it took less than a second."""
    environment = dict(os.environ) | {"SERVING_MODEL_NAME": "ranker", "MLFLOW_TRACKING_URI": registry}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(cursor)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(" | ")


@pytest.fixture
def server():
    started = Server()
    yield started
    started.stop()


def test_a_server_is_asked_once_a_tick_without_mlflow(server):
    said = idle_tick({"handled": HANDLED}, server.uri)

    assert said == ["The alias still names ranker:7.", "[]", "True"]
    assert len(server.paths) == 3


def test_an_untouched_database_is_not_opened(tmp_path):
    database = tmp_path / "mlflow.db"
    database.write_text("whoever opens this fails")
    os.utime(database, (1_700_000_000,) * 2)
    found = database.stat()
    state = f"sqlite:///{database} ranker champion {found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    said = idle_tick({"handled": HANDLED, "state": state}, f"sqlite:///{database}")

    assert said == ["The registry is unchanged: the alias still names ranker:7.", "[]", "True"]
