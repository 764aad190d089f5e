"""The sensors in a real daemon, with a real MLflow server and real run workers. The tests share one place, in order."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from tests.e2e.dagster_servers import ROOT, WORKSPACE, Daemon, Dagit, runs, ticks, wait_for_ticks, wait_until
from tests.servers import MlflowServer, environment_for_servers
from tests.worlds import World, build_driver_world, register_driver_model

# Runs one after another on a machine that other tests use, too: each takes ten seconds on a quiet one.
pytestmark = pytest.mark.timeout(300)


@dataclasses.dataclass
class Place:
    """A driver world with an MLflow server, a daemon and Dagit, and no model version at first."""

    world: World
    registry: MlflowServer
    instance: dg.DagsterInstance
    dagit: Dagit
    daemon: Daemon

    def drop_request(self, key: str, drivers: tuple[int, ...] = (1003, 1001)) -> None:
        """A request file, as if it had been written a minute ago."""
        file = Path(self.world.environment["SERVING_BATCH_REQUESTS"]) / f"{key}.csv"
        now = self.world.now.isoformat()
        part = file.with_suffix(".part")
        part.write_text("driver_id,event_timestamp\n" + "".join(f"{driver},{now}\n" for driver in drivers))
        os.utime(part, (time.time() - 60,) * 2)
        part.replace(file)

    def output(self, key: str) -> Path:
        return Path(self.world.environment["SERVING_ARTIFACTS"]) / key / "batch_output.parquet"

    def versions(self, key: str) -> set[int]:
        """The model versions in the request's published output."""
        file = self.output(key)
        return set(pq.read_table(file)["model_version"].to_pylist()) if file.exists() else set()

    def new_runs(self, before: int, expected: int) -> list[dg.DagsterRun]:
        """The runs that came after the first `before`, once all have ended, and later ticks brought no other."""
        wait_until(lambda: len(runs(self.instance)) >= before + expected, f"{expected} more runs")
        wait_until(lambda: all(run.is_finished for run in runs(self.instance)), "the end of all runs", within_s=120)
        wait_for_ticks(self.instance, "new_model_version", "new_batch_request")
        return runs(self.instance)[before:]

    def command(self, *arguments: str) -> None:
        """Dagster's command line, where the webserver and the daemon also run."""
        done = subprocess.run(
            [sys.executable, "-m", "dagster", *arguments, "-w", str(WORKSPACE)],
            env=environment_for_servers() | self.daemon.own_environment(),
            cwd=self.daemon.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
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
    for name in ("dagit", "daemon"):
        (folder / name).mkdir()
    dagit = Dagit(folder / "dagit", environment=environment)
    daemon = Daemon(folder / "daemon", environment=environment)
    try:
        dagit.start()
        daemon.start()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield Place(world, mlflow_server, instance, dagit, daemon)
    finally:
        daemon.stop()
        dagit.stop()


def test_a_request_waits_for_the_first_version_which_then_scores_it_in_one_run(place):
    place.drop_request("day1")
    wait_for_ticks(place.instance, "new_batch_request")
    assert runs(place.instance) == []

    register_driver_model(place.world)

    (run,) = place.new_runs(0, 1)
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert place.versions("day1") == {1}


def test_a_new_version_and_a_rollback_lead_to_one_run_each(place):
    before = len(runs(place.instance))
    register_driver_model(place.world, alpha=0.1)
    (forward,) = place.new_runs(before, 1)
    assert place.versions("day1") == {2}

    place.world.promote(1)
    (back,) = place.new_runs(before + 1, 1)
    assert place.versions("day1") == {1}

    assert [run.tags["serving/model_version"] for run in (forward, back)] == ["daemon_ranker:2", "daemon_ranker:1"]
    assert {run.status for run in (forward, back)} == {dg.DagsterRunStatus.SUCCESS}


def test_ticks_fail_and_say_so_while_the_registry_is_down_and_the_version_after_it_runs_once(place):
    before = len(runs(place.instance))

    def failed_ticks() -> list[str]:
        found = ticks(place.instance, "new_model_version")
        return [str(tick.error) for tick in found if tick.status.value == "FAILURE"]

    with place.registry.stopped():
        wait_until(lambda: len(failed_ticks()) >= 3, "three failed ticks")
    place.world.promote(2)

    (run,) = place.new_runs(before, 1)
    assert run.tags["serving/model_version"] == "daemon_ranker:2"
    assert all("gave no answer" in error and place.registry.uri in error for error in failed_ticks())


def test_a_pinned_run_from_the_command_line_uses_that_version_and_a_restarted_daemon_repeats_nothing(place):
    before = len(runs(place.instance))
    place.daemon.stop()
    place.daemon.log.unlink()  # it is what tells that the next one is up
    place.drop_request("day2")
    place.drop_request("day3", drivers=(1005,))
    place.instance.add_dynamic_partitions("batch_requests", ["day2", "day3"])
    pin = {"ops": {"registered_model_version": {"config": {"version": 1}}}}
    tags = {"dagster/asset_partition_range_start": "day2", "dagster/asset_partition_range_end": "day3"}

    place.command("job", "launch", "-j", "score_batch", "--config-json", json.dumps(pin), "--tags", json.dumps(tags))
    place.daemon.start()

    (run,) = place.new_runs(before, 1)
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert (place.versions("day2"), place.versions("day3")) == ({1}, {1})


def test_a_bad_file_fails_its_run_by_name_and_the_good_ones_beside_it_are_scored(place):
    before = len(runs(place.instance))
    place.drop_request("good1")
    place.drop_request("good2")
    bad = Path(place.world.environment["SERVING_BATCH_REQUESTS"]) / "bad.csv"
    bad.write_text("driver_id\n1001\n")
    os.utime(bad, (time.time() - 61,) * 2)

    wait_until(lambda: place.versions("good1") and place.versions("good2"), "both good outputs", within_s=150)

    new = place.new_runs(before, 2)
    assert [run.status for run in new][-1] is dg.DagsterRunStatus.SUCCESS
    assert [run.status for run in new].count(dg.DagsterRunStatus.FAILURE) == 1
    assert not place.output("bad").exists()
