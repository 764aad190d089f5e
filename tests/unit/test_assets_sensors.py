"""The real sensors over a real Dagster instance and a request folder; only the registry is a fake."""

import os
import time
from pathlib import Path

import dagster as dg
import pytest

from scoring.errors import AliasNotSet, RegistryUnreachable
from scoring.registry import ModelVersion
from scoring.settings import Settings
from serving_assets.definitions import definitions
from serving_assets.history import RANGE_END, RANGE_START

MODEL = "ranker"


class FakeRegistry:
    """A registry whose alias is an attribute."""

    def __init__(self) -> None:
        self.champion: int | None = None
        self.up = True

    def resolve(self, name: str, alias: str) -> ModelVersion:
        if not self.up:
            raise RegistryUnreachable("http://registry", ConnectionError("refused"))
        if self.champion is None:
            raise AliasNotSet(name, alias)
        return ModelVersion(name, self.champion)


class FakeServing:
    """What the sensors use of `Serving`."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(model_name=MODEL, batch_requests=folder)
        self.registry = FakeRegistry()


class Daemon:
    """Does with a tick's outcome what Dagster's daemon does, and plays the runs."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.serving = FakeServing(folder)
        self.instance = dg.DagsterInstance.local_temp(str(home))
        self.repository = definitions.get_repository_def()
        self.cursors: dict[str, str | None] = {}
        self.runs: list[dg.DagsterRun] = []

    def write_request(self, key: str, age_s: float = 60) -> None:
        file = self.folder / f"{key}.csv"
        file.write_text("driver_id,event_timestamp\n")
        os.utime(file, (time.time() - age_s,) * 2)

    def tick(self, name: str) -> str | None:
        """One tick; the runs it asked for are started. Returns why it skipped."""
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursors.get(name),
            repository_def=self.repository,
            sensor_name=name,
            resources={"serving": self.serving},
        )
        data = definitions.resolve_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = data.cursor
        for partitions in data.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(partitions.partitions_def_name, partitions.partition_keys)
        keys = {run.tags["dagster/run_key"] for run in self.runs}
        for request in data.run_requests or []:
            if request.run_key not in keys:
                self._start(name, request)
        return data.skip_message

    def both(self) -> None:
        self.tick("new_model_version")
        self.tick("new_batch_request")

    def _start(self, sensor: str, request: dg.RunRequest) -> None:
        run = self.instance.create_run_for_job(
            definitions.resolve_job_def("score_batch"),
            run_config=request.run_config,
            tags={**request.tags, "dagster/run_key": request.run_key, "dagster/sensor_name": sensor},
            status=dg.DagsterRunStatus.STARTED,
        )
        self.runs.append(run)

    def finish(self, run: dg.DagsterRun) -> None:
        """The run succeeds: with the version that it pins, else with what the alias names now."""
        config = run.run_config.get("ops", {}).get("registered_model_version", {}).get("config", {})
        self.materialize(run, config.get("version") or self.serving.registry.champion)

    def materialize(self, run: dg.DagsterRun, version: int) -> None:
        for key in self.partitions(run):
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    "batch_output", partition=key, metadata={"model_name": MODEL, "model_version": version}
                )
            )
        self.instance.handle_new_event(_ended(run, dg.DagsterEventType.RUN_SUCCESS))

    def fail(self, run: dg.DagsterRun) -> None:
        self.instance.handle_new_event(_ended(run, dg.DagsterEventType.RUN_FAILURE))

    def partitions(self, run: dg.DagsterRun) -> list[str]:
        if "dagster/partition" in run.tags:
            return [run.tags["dagster/partition"]]
        known = list(self.instance.get_dynamic_partitions("batch_requests"))
        return known[known.index(run.tags[RANGE_START]) : known.index(run.tags[RANGE_END]) + 1]

    def finish_all(self) -> None:
        for run in self.runs:
            if not self.instance.get_run_by_id(run.run_id).is_finished:
                self.finish(run)


def _ended(run: dg.DagsterRun, event_type: dg.DagsterEventType) -> dg.EventLogEntry:
    event = dg.DagsterEvent(event_type_value=event_type.value, job_name=run.job_name)
    return dg.EventLogEntry(
        error_info=None,
        level="info",
        user_message="",
        run_id=run.run_id,
        timestamp=time.time(),
        job_name=run.job_name,
        dagster_event=event,
    )


@pytest.fixture
def daemon(tmp_path):
    requests, home = tmp_path / "requests", tmp_path / "home"
    requests.mkdir()
    home.mkdir()
    return Daemon(requests, home)


@pytest.fixture
def scored_by_version_1(daemon):
    """One request, scored by version 1, and both sensors at rest."""
    daemon.write_request("day1")
    daemon.serving.registry.champion = 1
    daemon.both()
    daemon.finish_all()
    daemon.both()
    assert len(daemon.runs) == 1
    daemon.runs.clear()
    return daemon


def test_the_first_version_and_a_new_request_at_the_same_moment_lead_to_one_run(daemon):
    daemon.write_request("day1")
    daemon.serving.registry.champion = 1

    for _ in range(3):
        daemon.both()
    daemon.finish_all()
    for _ in range(3):
        daemon.both()

    assert [daemon.partitions(run) for run in daemon.runs] == [["day1"]]


def test_a_new_version_scores_the_newest_request_once_and_pins_it(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = 2

    for _ in range(3):
        daemon.both()
    daemon.finish_all()
    daemon.both()

    (run,) = daemon.runs
    assert daemon.partitions(run) == ["day1"]
    assert run.run_config == {"ops": {"registered_model_version": {"config": {"version": 2}}}}
    assert run.tags["serving/model_version"] == "ranker:2"


def test_two_versions_between_two_ticks_lead_to_one_run_of_the_newer(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = 2
    daemon.serving.registry.champion = 3

    daemon.both()

    assert [run.tags["serving/model_version"] for run in daemon.runs] == ["ranker:3"]


def test_a_version_that_comes_while_a_run_is_in_flight_waits_for_it_and_runs_after_it(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = 2
    daemon.both()
    daemon.serving.registry.champion = 3
    daemon.both()
    assert len(daemon.runs) == 1

    daemon.finish_all()
    daemon.both()

    assert [run.tags["serving/model_version"] for run in daemon.runs] == ["ranker:2", "ranker:3"]


def test_rollback_scores_again_with_the_older_version(scored_by_version_1):
    daemon = scored_by_version_1
    for version in (2, 1, 2, 1):
        daemon.serving.registry.champion = version
        daemon.both()
        daemon.finish_all()
        daemon.both()

    assert [run.tags["serving/model_version"] for run in daemon.runs] == ["ranker:2", "ranker:1"] * 2


def test_an_unreachable_registry_fails_the_tick_and_the_later_version_still_runs_once(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.up = False
    before = dict(daemon.cursors)
    for _ in range(3):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - Dagster wraps what a sensor raises
            daemon.tick("new_model_version")
        assert "gave no answer" in str(caught.value.__cause__ or caught.value)
    assert daemon.cursors == before

    daemon.serving.registry.up = True
    daemon.serving.registry.champion = 2
    for _ in range(3):
        daemon.both()

    assert len(daemon.runs) == 1


def test_an_alias_removed_and_set_again_to_the_same_version_runs_nothing(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = None
    assert "has no alias 'champion'" in daemon.tick("new_model_version")

    daemon.serving.registry.champion = 1
    daemon.both()

    assert daemon.runs == []


def test_an_idle_registry_and_folder_run_nothing(scored_by_version_1):
    for _ in range(5):
        scored_by_version_1.both()

    assert scored_by_version_1.runs == []


@pytest.mark.parametrize("lost", [None, "", "not json", '{"handled": 7}'])
def test_a_lost_cursor_runs_nothing(scored_by_version_1, lost):
    daemon = scored_by_version_1
    daemon.cursors = dict.fromkeys(daemon.cursors, lost)

    for _ in range(3):
        daemon.both()

    assert daemon.runs == []


def test_a_cursor_lost_while_the_run_is_in_flight_or_after_it_failed_runs_nothing_more(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = 2
    daemon.both()
    daemon.cursors.clear()
    daemon.both()
    daemon.fail(daemon.runs[0])
    daemon.cursors.clear()
    for _ in range(3):
        daemon.both()

    assert len(daemon.runs) == 1


def test_a_rollback_after_a_lost_cursor_still_runs(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = 2
    daemon.both()
    daemon.finish_all()
    daemon.cursors.clear()
    daemon.both()
    daemon.serving.registry.champion = 1
    daemon.both()

    assert [run.tags["serving/model_version"] for run in daemon.runs] == ["ranker:2", "ranker:1"]


def test_a_failed_run_is_not_repeated_in_a_loop(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.champion = 2
    daemon.both()
    daemon.fail(daemon.runs[0])
    for _ in range(5):
        daemon.both()

    assert len(daemon.runs) == 1


def test_a_version_without_any_request_is_scored_when_the_first_request_comes(daemon):
    daemon.serving.registry.champion = 1
    daemon.both()
    assert daemon.runs == []

    daemon.write_request("day1")
    for _ in range(3):
        daemon.both()

    assert [daemon.partitions(run) for run in daemon.runs] == [["day1"]]


def test_a_partition_added_by_hand_is_scored_by_the_first_version(daemon):
    daemon.write_request("day1")
    daemon.instance.add_dynamic_partitions("batch_requests", ["day1"])
    daemon.serving.registry.champion = 1

    for _ in range(4):
        daemon.both()

    assert [daemon.partitions(run) for run in daemon.runs] == [["day1"]]


def test_requests_wait_for_the_first_version_and_are_then_scored_once(daemon):
    daemon.write_request("day1")
    assert "1 batch requests wait" in daemon.tick("new_batch_request")
    daemon.both()

    daemon.serving.registry.champion = 1
    for _ in range(3):
        daemon.both()

    assert len(daemon.runs) == 1


def test_many_new_files_are_one_run(daemon):
    for i in range(60):
        daemon.write_request(f"r{i:02}")
    daemon.serving.registry.champion = 1

    daemon.both()
    daemon.both()

    (run,) = daemon.runs
    assert sorted(daemon.partitions(run)) == [f"r{i:02}" for i in range(60)]


def test_a_file_written_a_moment_ago_waits(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day1", age_s=0)

    assert "still being written" in daemon.tick("new_batch_request")
    assert daemon.runs == []


def test_a_file_whose_name_is_no_key_is_told_and_left(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day 1")

    assert "day 1.csv" in daemon.tick("new_batch_request")
    assert daemon.runs == []


def test_a_wrong_setting_fails_the_tick_with_its_own_text(daemon):
    from serving_assets.resources import Serving

    daemon.serving = Serving({"SERVING_MODEL_NAME": "ranker", "SERVING_PORT": "many"})

    with pytest.raises(Exception) as caught:  # noqa: PT011 - Dagster wraps what a sensor raises
        daemon.tick("new_model_version")
    assert "SERVING_PORT" in str(caught.value.__cause__ or caught.value)
