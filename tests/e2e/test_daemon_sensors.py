"""The sensors in a real daemon, runs in real run workers, seen as Dagit shows them."""

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from tests.e2e.dagster_servers import ROOT, Daemon, Dagit, runs, wait_for_ticks, wait_until
from tests.worlds import World, build_driver_world, register_driver_model

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
ADD_PARTITION = """
mutation ($selector: RepositorySelector!, $key: String!) {
  addDynamicPartition(repositorySelector: $selector, partitionsDefName: "batch_requests", partitionKey: $key) {
    __typename
  }
}"""
RUN = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status stepStats { stepKey status } } } }"
SELECTOR = {"repositoryLocationName": "model_serving", "repositoryName": "__repository__"}


@dataclasses.dataclass
class Place:
    """A driver world with a daemon and Dagit of its own."""

    world: World
    instance: dg.DagsterInstance
    dagit: Dagit
    daemon: Daemon

    def drop_request(self, key: str) -> None:
        folder = Path(self.world.environment["SERVING_BATCH_REQUESTS"])
        now = self.world.now.isoformat()
        (folder / f"{key}.csv").write_text(f"driver_id,event_timestamp\n1003,{now}\n1001,{now}\n")
        os.utime(folder / f"{key}.csv", (time.time() - 60,) * 2)

    def versions(self, key: str) -> set[int]:
        """The model versions in the request's published output."""
        file = Path(self.world.environment["SERVING_ARTIFACTS"]) / key / "batch_output.parquet"
        return set(pq.read_table(file)["model_version"].to_pylist()) if file.exists() else set()

    def wait_for_success(self, number: int) -> None:
        def succeeded() -> bool:
            states = [run.status for run in runs(self.instance)]
            assert dg.DagsterRunStatus.FAILURE not in states
            return states.count(dg.DagsterRunStatus.SUCCESS) == number

        wait_until(succeeded, f"{number} successful runs")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Everything up, no request yet."""
    world = build_driver_world(tmp_path / "world")
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(ROOT / "demo" / "dagster.yaml", home)
    Path(world.environment["SERVING_BATCH_REQUESTS"]).mkdir()
    environment = world.environment | {"DAGSTER_HOME": str(home)}
    for name in ("dagit", "daemon"):
        (tmp_path / name).mkdir()
    dagit = Dagit(tmp_path / "dagit", environment=environment)
    daemon = Daemon(tmp_path / "daemon", environment=environment)
    try:
        dagit.start()
        daemon.start()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield Place(world, instance, dagit, daemon)
    finally:
        daemon.stop()
        dagit.stop()


@pytest.mark.timeout(400)  # three runs one after another, each in a process of its own
def test_a_dropped_request_a_promotion_and_a_rollback_each_lead_to_exactly_one_run(place):
    place.drop_request("day1")
    place.wait_for_success(1)
    wait_for_ticks(place.instance, "new_model_version")
    assert place.versions("day1") == {1}

    register_driver_model(place.world, alpha=0.1)
    place.wait_for_success(2)
    wait_for_ticks(place.instance, "new_model_version")
    assert place.versions("day1") == {2}

    place.world.promote(1)
    place.wait_for_success(3)
    wait_for_ticks(place.instance, "new_model_version")
    wait_for_ticks(place.instance, "new_batch_request")
    assert place.versions("day1") == {1}

    keys = [run.tags["dagster/sensor_name"] for run in runs(place.instance)]
    assert keys == ["new_batch_request", "new_model_version", "new_model_version"]


def test_a_run_launched_in_dagit_is_not_repeated_by_the_sensors(place):
    place.dagit.ask(ADD_PARTITION, selector=SELECTOR, key="day1")
    launched = place.dagit.ask(
        LAUNCH,
        params={
            "selector": SELECTOR | {"jobName": "serve_batch"},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "day1"}]},
        },
    )["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    place.drop_request("day1")

    place.wait_for_success(1)
    wait_for_ticks(place.instance, "new_model_version")
    wait_for_ticks(place.instance, "new_batch_request")

    assert [run.job_name for run in runs(place.instance)] == ["serve_batch"]
    steps = place.dagit.ask(RUN, run=launched["run"]["runId"])["runOrError"]["stepStats"]
    assert {step["stepKey"] for step in steps} >= {"feast_registry", "online_store", "batch_output"}
    assert place.versions("day1") == {1}
