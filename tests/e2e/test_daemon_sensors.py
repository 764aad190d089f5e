"""The sensors in a real daemon, with a real MLflow server and real run workers.

The tests share one daemon and run in order: first version, outage and new version, rollback, a restart with a pinned
run that contains a bad file. The last test checks all runs.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from tests.support import warm
from tests.support.dagster_servers import ROOT, WORKSPACE, Daemon, runs, ticks, wait_for_ticks, wait_until
from tests.support.servers import MlflowServer, environment_for_servers
from tests.support.worlds import World, build_driver_world, register_driver_model

# Each run takes eight seconds on a quiet machine, and other tests run at the same time.
pytestmark = pytest.mark.timeout(300)


@dataclasses.dataclass
class Place:
    """A driver world with an MLflow server and a daemon, at first without a model version."""

    world: World
    registry: MlflowServer
    instance: dg.DagsterInstance
    daemon: Daemon

    def drop_request(self, key: str, text: str | None = None) -> None:
        """Write a request file with a modification time one minute ago."""
        file = Path(self.world.environment["SERVING_BATCH_REQUESTS"]) / f"{key}.csv"
        now = self.world.now.isoformat()
        part = file.with_suffix(".part")
        part.write_text(text or f"driver_id,event_timestamp\n1003,{now}\n1001,{now}\n")
        os.utime(part, (time.time() - 60,) * 2)
        part.replace(file)

    def output(self, key: str) -> Path:
        return Path(self.world.environment["SERVING_ARTIFACTS"]) / key / "batch_output.parquet"

    def versions(self, key: str) -> set[int]:
        """Return the model versions in the request's published output."""
        file = self.output(key)
        return set(pq.read_table(file)["model_version"].to_pylist()) if file.exists() else set()

    def wait_until_scored(self, key: str, version: int) -> None:
        """Wait until the request's output is from this version and its run has ended."""
        wait_until(lambda: self.versions(key) == {version}, f"{key} scored with version {version}", within_s=150)
        wait_until(lambda: all(run.is_finished for run in runs(self.instance)), "the end of all runs")

    def command(self, *arguments: str) -> None:
        """Run Dagster's command line in the daemon's environment."""
        command = ["-m", "dagster", *arguments, "-w", str(WORKSPACE)]
        done = warm.run(command, environment_for_servers() | self.daemon.own_environment(), self.daemon.directory)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("daemon")
    world = build_driver_world(folder / "world")
    world.environment |= {"MLFLOW_TRACKING_URI": mlflow_server.uri, "SERVING_MODEL_NAME": "daemon_ranker"}
    home = folder / "dagster_home"
    home.mkdir()
    shutil.copy(ROOT / "demo" / "dagster.yaml", home)
    Path(world.environment["SERVING_BATCH_REQUESTS"]).mkdir()
    environment = world.environment | {"DAGSTER_HOME": str(home)}
    (folder / "daemon").mkdir()
    daemon = Daemon(folder / "daemon", environment=environment)
    try:
        daemon.start()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield Place(world, mlflow_server, instance, daemon)
    finally:
        daemon.stop()


def tick_messages(place: Place, sensor: str) -> list[str]:
    """Return the skip reasons and errors of the sensor's ticks."""
    return [str(tick.error or tick.skip_reason) for tick in ticks(place.instance, sensor)]


def test_a_request_waits_for_the_first_version_and_is_scored_with_it(place):
    place.drop_request("day1")
    wait_until(
        lambda: any(
            "1 batch requests wait for a model version" in text for text in tick_messages(place, "new_batch_request")
        ),
        "a tick that says what the request waits for",
    )
    assert runs(place.instance) == []

    register_driver_model(place.world)

    place.wait_until_scored("day1", version=1)


def test_ticks_fail_while_the_registry_is_down_and_a_version_after_the_outage_is_used(place):
    def refused() -> list[str]:
        return [text for text in tick_messages(place, "new_model_version") if "did not respond" in text]

    with place.registry.stopped():
        wait_until(lambda: len(refused()) >= 2, "two ticks that say that the registry did not respond")
    assert all(place.registry.uri in text for text in refused())
    register_driver_model(place.world, alpha=0.1)

    place.wait_until_scored("day1", version=2)


def test_a_rollback_scores_the_request_again(place):
    place.world.promote(1)

    place.wait_until_scored("day1", version=1)


def test_a_pinned_run_fails_for_a_bad_file_and_scores_the_others_with_the_pinned_version(place):
    place.daemon.kill()
    place.daemon.log.unlink()  # a new log shows that the next daemon is up
    keys = ["bad", "day2", "day3"]
    for key in keys:
        place.drop_request(key, "driver_id\n1001\n" if key == "bad" else None)
    place.instance.add_dynamic_partitions("batch_requests", keys)
    pin = {"ops": {"registered_model_version": {"config": {"version": 2}}}}
    tags = {"dagster/asset_partition_range_start": "bad", "dagster/asset_partition_range_end": "day3"}

    place.command("job", "launch", "-j", "score_batch", "--config-json", json.dumps(pin), "--tags", json.dumps(tags))
    place.daemon.start()

    place.wait_until_scored("day2", version=2)
    place.wait_until_scored("day3", version=2)
    assert not place.output("bad").exists()


def test_each_event_took_one_run_and_a_restarted_daemon_requests_none(place):
    wait_for_ticks(place.instance, "new_model_version", "new_batch_request", "score_the_others")

    success, failure = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE
    first, forward, back, pinned, others = runs(place.instance)
    assert [run.status for run in (first, forward, back, pinned, others)] == [success] * 3 + [failure, success]
    assert [run.tags.get("dagster/sensor_name") for run in (first, forward, back, pinned, others)] == [
        "new_batch_request",
        "new_model_version",
        "new_model_version",
        None,
        "score_the_others",
    ]
    assert [run.tags["serving/model_version"] for run in (forward, back)] == ["daemon_ranker:2", "daemon_ranker:1"]
    assert others.tags["serving/others_of"] == pinned.run_id
