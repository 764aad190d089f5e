"""The sensors, with a real Dagster instance and a request folder; only the registry is a fake."""

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import msgspec
import pytest
import yaml
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.monitoring.run_monitoring import check_run_timeout

from scoring.errors import StorageError
from scoring.files.location import Location
from serving_assets.records import history
from serving_assets.records.retries import FAILURES_TAG
from serving_assets.sensors.jobs import REQUESTS_PER_RUN
from tests.support.daemon import Daemon, _ended

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def daemon(tmp_path):
    requests = tmp_path / "requests"
    requests.mkdir()
    return Daemon(requests, tmp_path / "home")


@pytest.fixture
def scored_by_version_1(daemon):
    """One request, scored by version 1, and nothing left to do for the sensors."""
    daemon.write_request("day1")
    daemon.serving.registry.champion = 1
    daemon.both()
    daemon.finish_all()
    daemon.both()
    assert len(daemon.runs) == 1
    daemon.runs.clear()
    return daemon


def request_run(daemon: Daemon, *keys: str, age_s: float = 60) -> dg.DagsterRun:
    """Write these requests and set the alias on version 1. Return the run that the sensor starts for them."""
    for key in keys:
        daemon.write_request(key, age_s)
    daemon.serving.registry.champion = 1
    daemon.tick("new_batch_request")
    return daemon.runs[-1]


def scored(daemon: Daemon) -> list[list[str]]:
    return [daemon.partitions(run) for run in daemon.runs]


def play(daemon: Daemon, steps: str) -> None:
    """Do the steps, in order; `tick` is one of both sensors."""
    file = daemon.folder / "day1.csv"
    first = file.read_text(), file.stat().st_mtime_ns
    for step in steps.split(", "):
        action, _, argument = step.partition(" ")
        if action == "promote":
            daemon.serving.registry.champion = int(argument) if argument else None
        elif action == "register":
            daemon.serving.registry.created_ms += 60_001
        elif action == "lose":
            daemon.cursors = dict.fromkeys(daemon.cursors, argument)
        elif action == "fail":
            daemon.fail(daemon.runs[-1])
        elif action == "change":
            daemon.write_request("day1", text="driver_id,event_timestamp\n1001,2026-01-01\n")
        elif action == "restore":
            file.write_text(first[0])
            os.utime(file, ns=(first[1], first[1]))  # as cp -p does, the time returns, too
        else:
            {"tick": daemon.both, "finish": daemon.finish_all}[action]()


@pytest.mark.parametrize(
    ("steps", "versions"),
    [
        pytest.param("promote 2, tick, tick, tick, finish, tick", [2], id="a new version"),
        pytest.param("promote 2, promote 3, tick", [3], id="two versions between two ticks"),
        pytest.param("promote 2, tick, promote 3, tick", [2], id="a run is in flight"),
        pytest.param("promote 2, tick, promote 3, tick, finish, tick", [2, 3], id="a run was in flight"),
        pytest.param(
            "promote 2, tick, finish, tick, promote 1, tick, finish, tick, promote 2, tick", [2, 1, 2], id="rollback"
        ),
        pytest.param("register, tick, tick, finish, lose, tick, tick", [1], id="deleted and registered again"),
        pytest.param("promote, tick, promote 1, tick", [], id="alias removed and set again"),
        pytest.param("tick, tick, tick", [], id="nothing new"),
        pytest.param("lose, tick, tick", [], id="cursor lost"),
        pytest.param("lose not json, tick, tick", [], id="cursor damaged"),
        pytest.param('lose {"handled": 7}, tick, tick', [], id="cursor of another form"),
        pytest.param(
            "promote 2, tick, lose, tick, fail, lose, tick, tick", [2], id="cursor lost during and after a run"
        ),
        pytest.param(
            "promote 2, tick, finish, lose, tick, promote 1, tick", [2, 1], id="cursor lost before a rollback"
        ),
        pytest.param("promote 2, tick, fail, tick, tick, tick", [2], id="a failed run"),
    ],
)
def test_a_version_is_scored_once_for_each_time_that_the_alias_moves_to_it(scored_by_version_1, steps, versions):
    play(scored_by_version_1, steps)

    runs = scored_by_version_1.runs
    assert [run.tags["serving/model_version"] for run in runs] == [f"ranker:{version}" for version in versions]
    pins = [{"ops": {"registered_model_version": {"config": {"version": version}}}} for version in versions]
    assert [run.run_config for run in runs] == pins
    assert scored(scored_by_version_1) == [["day1"]] * len(versions)


def test_the_skip_message_names_a_missing_alias(scored_by_version_1):
    scored_by_version_1.serving.registry.champion = None
    assert "'ranker' has no alias 'champion'" in scored_by_version_1.tick("new_model_version")


def test_an_unreachable_registry_fails_the_tick_and_the_later_version_still_runs_once(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.serving.registry.up = False
    before = dict(daemon.cursors)
    for _ in range(3):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - Dagster wraps what a sensor raises
            daemon.tick("new_model_version")
        assert "did not respond" in str(caught.value.__cause__ or caught.value)
    assert daemon.cursors == before

    daemon.serving.registry.up = True
    daemon.serving.registry.champion = 2
    for _ in range(3):
        daemon.both()

    assert len(daemon.runs) == 1


@pytest.mark.parametrize("added", [True, False], ids=["partition added by hand", "partition added by the sensor"])
@pytest.mark.parametrize("first", ["version", "request", "neither"])
def test_the_first_request_is_scored_once_by_the_first_version_in_either_order(daemon, first, added):
    if first == "version":
        daemon.serving.registry.champion = 1
        daemon.both()
    daemon.write_request("day1")
    if added:
        daemon.instance.add_dynamic_partitions("batch_requests", ["day1"])
    if first == "request":
        assert "1 batch requests wait for a model version (day1)" in daemon.tick("new_batch_request")
        daemon.both()
    daemon.serving.registry.champion = 1
    for _ in range(3):
        daemon.both()
    daemon.finish_all()
    for _ in range(3):
        daemon.both()

    assert scored(daemon) == [["day1"]]


def test_a_thousand_new_files_are_a_few_runs_and_each_is_requested_once(daemon):
    for i in range(1000):
        daemon.write_request(f"r{i:04}")
    daemon.serving.registry.champion = 1
    started = time.monotonic()

    daemon.tick("new_batch_request")
    assert time.monotonic() - started < 20  # a tick may take 60

    started = time.monotonic()
    assert "No new or changed file" in daemon.tick("new_batch_request")
    assert time.monotonic() - started < 5
    daemon.cursors.clear()
    assert "1000 new or changed files are being scored" in daemon.tick("new_batch_request")
    started = time.monotonic()
    assert "waiting for it" in daemon.tick("new_model_version")
    assert time.monotonic() - started < 2  # every five seconds, as long as the runs take
    for run in daemon.runs:
        daemon.fail(run)
    daemon.tick("new_batch_request")  # requests the same run keys again, and Dagster starts nothing
    assert len(daemon.runs) == 1000 / REQUESTS_PER_RUN
    assert sorted(key for run in daemon.runs for key in daemon.partitions(run)) == [f"r{i:04}" for i in range(1000)]

    started = time.monotonic()
    daemon.tick("new_model_version")  # the newest request's run failed: it searches for one that has a result
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("steps", "runs"),
    [
        pytest.param("change, tick, tick, tick, finish, tick, tick", 1, id="new content"),
        pytest.param("change, tick, finish, restore, tick", 2, id="the first content again"),
    ],
)
def test_a_file_with_other_content_is_scored_again_once(scored_by_version_1, steps, runs):
    play(scored_by_version_1, steps)

    assert scored(scored_by_version_1) == [["day1"]] * runs


def test_a_touched_file_is_neither_scored_again_nor_read_at_every_tick(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.write_request("day1", age_s=30)
    for _ in range(3):
        daemon.both()
    assert daemon.runs == []

    (daemon.folder / "day1.csv").chmod(0)  # reading it fails now, except for root
    daemon.write_request("day2")
    daemon.both()
    assert scored(daemon) == [["day2"]]


def test_a_file_that_changes_during_its_run_is_scored_after_it(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.write_request("day1", age_s=50, text="second\n")
    daemon.both()
    daemon.read(daemon.runs[0])
    daemon.write_request("day1", age_s=40, text="third\n")
    assert "are being scored" in daemon.tick("new_batch_request")
    assert len(daemon.runs) == 1

    daemon.instance.handle_new_event(_ended(daemon.runs[0], dg.DagsterEventType.RUN_SUCCESS))
    daemon.both()
    assert len(daemon.runs) == 2


def test_removing_a_file_removes_neither_its_partition_nor_its_output(scored_by_version_1):
    daemon = scored_by_version_1
    (daemon.folder / "day1.csv").unlink()
    for _ in range(3):
        daemon.both()

    assert daemon.runs == []
    assert list(daemon.instance.get_dynamic_partitions("batch_requests")) == ["day1"]
    assert daemon.instance.get_latest_materialization_event(dg.AssetKey("batch_output")) is not None


def test_the_requests_beside_a_refused_one_are_scored_once_by_their_own_runs(daemon):
    daemon.refuse(request_run(daemon, "a", "b", "c", "d"), "b")
    daemon.tick("new_model_version")

    assert daemon.tick_after_failure(daemon.runs[0]) is None
    for _ in range(2):
        daemon.both()
    daemon.finish_all()
    daemon.both()

    assert [daemon.partitions(run) for run in daemon.runs[1:]] == [["a"], ["c", "d"]]


def test_new_requests_go_before_those_between_refused_ones(daemon):
    daemon.refuse(request_run(daemon, "a", "b", "c", "d", "e"), "b", "d")
    daemon.tick_after_failure(daemon.runs[0])
    daemon.write_request("new")
    daemon.tick("new_batch_request")

    runs = daemon.runs[1:]
    assert [daemon.partitions(run) for run in runs] == [["a"], ["c"], ["e"], ["new"]]
    assert [int(run.tags.get("dagster/priority", 0)) for run in runs] == [-1, -1, -1, 0]


def test_a_run_that_failed_for_another_reason_is_not_repeated_at_once(scored_by_version_1):
    daemon = scored_by_version_1
    daemon.fail(request_run(daemon, "a", "b"))

    assert daemon.tick_after_failure(daemon.runs[0]) is not None
    for _ in range(3):
        daemon.both()
    assert len(daemon.runs) == 1


def test_a_request_whose_run_failed_at_the_scores_table_is_retried(daemon):
    settings = daemon.serving.settings
    daemon.serving.settings = msgspec.structs.replace(settings, scores_table=Location("scores"))
    daemon.plan(request_run(daemon, "a", age_s=9000), "scores_table")
    daemon.materialize(daemon.runs[0], 1)
    daemon.fail(daemon.runs[0], 100)

    daemon.cursors.clear()
    daemon.tick("new_batch_request")

    assert scored(daemon) == [["a"], ["a"]]
    daemon.plan(daemon.runs[1], "scores_table")
    daemon.materialize(daemon.runs[1], 1)
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization("scores_table", partition="a"))
    daemon.cursors.clear()
    assert "No new or changed file" in daemon.tick("new_batch_request")


@pytest.mark.parametrize("seen", [True, False], ids=["after it was read", "before it was read"])
def test_requests_whose_run_failed_are_retried_less_and_less_often_until_they_are_scored_or_refused(daemon, seen):
    for key in ("a", "b", "c"):
        daemon.write_request(key, age_s=9000)
    daemon.serving.registry.champion = 1
    for failed_ago_s in (4000, 3900, 0):
        daemon.tick("new_batch_request")
        if seen:
            daemon.read(daemon.runs[-1])
        daemon.fail(daemon.runs[-1], failed_ago_s)
        if failed_ago_s:
            daemon.cursors.clear()  # as time goes by
    assert len(daemon.runs) == 3
    retried_at = daemon.instance.get_run_record_by_id(daemon.runs[-1].run_id).end_time + 1800
    when = datetime.fromtimestamp(retried_at, UTC).isoformat(" ", "seconds")
    for _ in range(2):
        assert f"3 requests whose run failed are retried, the first at {when} (a, b, c)" == daemon.tick(
            "new_batch_request"
        )
    daemon.cursors.clear()
    assert f"the first at {when} (a, b, c)" in daemon.tick("new_batch_request")

    daemon.fail(daemon.runs[-1], 3800)  # as more time goes by
    daemon.cursors.clear()
    daemon.tick("new_batch_request")
    assert scored(daemon) == [["a", "b", "c"]] * 4
    assert "dagster/priority" not in daemon.runs[0].tags
    assert daemon.runs[-1].tags["dagster/priority"] == "-1"  # new ones go first
    daemon.refuse(daemon.runs[-1], "b")
    daemon.tick_after_failure(daemon.runs[-1])
    daemon.finish_all()
    daemon.cursors.clear()
    assert "No new or changed file" in daemon.tick("new_batch_request")
    assert [daemon.partitions(run) for run in daemon.runs[4:]] == [["a"], ["c"]]


def test_after_many_failed_runs_requests_are_retried_alone_and_a_few_at_a_time(daemon):
    keys = [f"r{i}" for i in range(10)]
    daemon.fail(request_run(daemon, *keys, age_s=9000), 8000)
    daemon.start("new_batch_request", history.run_request("r0", "r9", "fifth", tags={FAILURES_TAG: "4"}))
    daemon.read(daemon.runs[-1])
    daemon.fail(daemon.runs[-1], 7000)
    daemon.cursors.clear()
    daemon.tick("new_batch_request")
    retries = daemon.runs[2:]
    assert [daemon.partitions(run) for run in retries] == [[key] for key in keys[:8]]
    assert {run.tags[FAILURES_TAG] for run in retries} == {"5"}

    waiting = "2 requests whose run failed wait for the retries of others (r8, r9)"
    assert waiting in daemon.tick("new_batch_request")
    for run in retries[1:]:
        daemon.finish(run)
    assert waiting in daemon.tick("new_batch_request")
    daemon.fail(retries[0])
    daemon.tick("new_batch_request")
    assert [daemon.partitions(run) for run in daemon.runs[10:]] == [["r8"], ["r9"]]


def test_two_files_of_one_name_are_refused_once_and_scored_when_one_is_removed(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day1")
    (daemon.folder / "day1.tsv").write_text("other\n")
    os.utime(daemon.folder / "day1.tsv", (time.time() - 50,) * 2)
    daemon.tick("new_batch_request")
    daemon.refuse(daemon.runs[0], "day1")
    daemon.write_request("day2")
    for _ in range(2):
        daemon.tick("new_batch_request")
        daemon.finish_all()
    assert scored(daemon) == [["day1"], ["day2"]]

    (daemon.folder / "day1.tsv").unlink()
    daemon.tick("new_batch_request")
    assert [daemon.partitions(run) for run in daemon.runs[2:]] == [["day1"]]


def test_a_file_from_the_future_is_named_and_read_when_it_does_not_change(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day1", age_s=-86_400)
    skipped = daemon.tick("new_batch_request")
    assert "1 new or changed files have a modification time in the future" in skipped
    assert "(day1.csv)" in skipped
    daemon.write_request("day1", age_s=-86_400, text="longer than before\n")
    assert "(day1.csv)" in daemon.tick("new_batch_request")

    for _ in range(2):
        daemon.tick("new_batch_request")
        daemon.finish_all()
    assert scored(daemon) == [["day1"]]
    assert "No new or changed file" in daemon.tick("new_batch_request")


def promoted_after_scoring(daemon: Daemon, days: int, rescore: str, removed: str | None = None) -> None:
    """Score one request per day with version 1, remove one, then request a run with version 2."""
    for day in range(1, days + 1):
        daemon.write_request(f"day{day}", 90 - day)
    daemon.serving.settings = msgspec.structs.replace(daemon.serving.settings, rescore=rescore)
    daemon.serving.registry.champion = 1
    daemon.both()
    daemon.finish_all()
    daemon.both()
    daemon.runs.clear()
    if removed:
        (daemon.folder / f"{removed}.csv").unlink()
    daemon.serving.registry.champion = 2
    daemon.tick("new_model_version")


@pytest.mark.parametrize(
    ("rescore", "removed", "runs"),
    [
        ("newest", None, [["day3"]]),
        ("all", None, [["day1", "day2", "day3"]]),
        ("all", "day2", [["day1"], ["day3"]]),
    ],
)
def test_a_new_version_scores_the_newest_request_or_all_whose_file_is_still_there(daemon, rescore, removed, runs):
    promoted_after_scoring(daemon, 3, rescore, removed)
    daemon.both()
    daemon.finish_all()
    daemon.both()

    assert scored(daemon) == runs


def test_a_refused_newest_request_does_not_prevent_an_older_one_from_being_scored_again(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day1", 90)
    daemon.both()
    daemon.finish_all()
    daemon.write_request("day2", 80)
    daemon.both()
    daemon.refuse(daemon.runs[-1], "day2")
    daemon.runs.clear()

    daemon.serving.registry.champion = 2
    for _ in range(2):
        daemon.both()

    assert {key for run in daemon.runs for key in daemon.partitions(run)} == {"day1", "day2"}


def test_a_file_that_was_just_written_waits(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day1", age_s=0)

    assert "still being written" in daemon.tick("new_batch_request")
    assert daemon.runs == []


class OneCannotBeRead(Location):
    """A request folder on a disk that fails for one of its files."""

    def __truediv__(self, name: str) -> Location:
        return Broken(self.local / name) if name == "broken.csv" else super().__truediv__(name)


class Broken(Location):
    def open(self):
        raise StorageError("opening", str(self), OSError("Input/output error"))


def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_scored(daemon):
    daemon.serving.registry.champion = 1
    folder = OneCannotBeRead(daemon.folder)
    daemon.serving.settings = msgspec.structs.replace(daemon.serving.settings, batch_requests=folder)
    daemon.write_request("broken")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Dagster wraps what a sensor raises
        daemon.tick("new_batch_request")
    assert "broken.csv failed: Input/output error" in str(caught.value.__cause__ or caught.value)

    daemon.write_request("day1")
    daemon.tick("new_batch_request")
    assert scored(daemon) == [["day1"]]

    daemon.write_request("broken", text="corrected\n")
    daemon.serving.settings = msgspec.structs.replace(daemon.serving.settings, batch_requests=Location(daemon.folder))
    daemon.tick("new_batch_request")
    assert scored(daemon) == [["day1"], ["broken"]]


def test_a_name_that_is_not_utf8_does_not_stop_the_others(daemon):
    daemon.serving.registry.champion = 1
    (daemon.folder / os.fsdecode(b"bad\xff.csv")).write_text("x")
    daemon.write_request("day1")

    daemon.tick("new_batch_request")
    assert scored(daemon) == [["day1"]]


def test_a_file_whose_name_is_not_a_key_is_reported_once_where_the_ui_shows_it(daemon):
    daemon.serving.registry.champion = 1
    daemon.write_request("day 1")
    daemon.write_request("day2")

    for _ in range(3):
        daemon.tick("new_batch_request")
        daemon.finish_all()

    assert scored(daemon) == [["day2"]]
    observed = daemon.instance.fetch_observations(dg.AssetKey("batch_request"), limit=10).records
    (event,) = [each.asset_observation for each in observed if each.partition_key is None]
    assert event.description.startswith("Ignored: 'day 1.csv'. Rename or convert them: a request's name needs 1 to")
    assert event.metadata["ignored"].value == event.description


def test_a_missing_request_folder_is_reported_by_each_tick_and_not_created(daemon):
    daemon.serving.registry.champion = 1
    daemon.folder.rmdir()

    for _ in range(2):
        for sensor in ("new_batch_request", "new_model_version"):
            missing = f"{daemon.folder}: there is no such folder: create it, or set SERVING_BATCH_REQUESTS."
            assert missing in daemon.tick(sensor)
    assert not daemon.folder.exists()

    daemon.folder.mkdir()
    daemon.write_request("day1")
    daemon.both()
    assert scored(daemon) == [["day1"]]


def test_a_wrong_setting_fails_the_tick_and_is_named(daemon):
    from serving_assets.resources import Serving

    daemon.serving = Serving({"SERVING_MODEL_NAME": "ranker", "SERVING_PORT": "many"})

    with pytest.raises(Exception) as caught:  # noqa: PT011 - Dagster wraps what a sensor raises
        daemon.tick("new_model_version")
    assert "SERVING_PORT" in str(caught.value.__cause__ or caught.value)


def test_a_request_is_retried_however_many_other_runs_failed_since(daemon, monkeypatch):
    request_run(daemon, "day1")

    def others_fail() -> None:
        for _ in range(6):
            other = dg.DagsterRun(job_name="refresh", asset_selection=frozenset({dg.AssetKey("online_store")}))
            daemon.fail(daemon.instance.add_run(other.with_status(dg.DagsterRunStatus.STARTED)))

    others_fail()  # while it waits in the queue
    daemon.read(daemon.runs[0])
    daemon.fail(daemon.runs[0])
    others_fail()
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)

    daemon.tick("new_batch_request")

    assert scored(daemon) == [["day1"], ["day1"]]


def test_a_canceled_run_is_not_retried(daemon):
    daemon.read(request_run(daemon, "day1"))
    daemon.instance.handle_new_event(_ended(daemon.runs[0], dg.DagsterEventType.RUN_CANCELED))
    daemon.both()
    daemon.tick("new_batch_request")
    assert len([run for run in daemon.runs if run.tags["dagster/sensor_name"] == "new_batch_request"]) == 1


def test_the_others_of_a_run_for_a_new_version_are_scored_with_the_version_that_the_alias_names_then(daemon):
    promoted_after_scoring(daemon, days=3, rescore="all")
    pinned = daemon.runs[-1]
    assert pinned.run_config
    daemon.serving.registry.champion = 1  # moved back while the run was in flight
    daemon.refuse(pinned, "day2")
    daemon.tick("new_model_version")
    assert daemon.tick_after_failure(pinned) is None
    assert [run.run_config for run in daemon.runs[-2:]] == [{}, {}]


def test_the_others_of_a_run_that_a_tag_pins_keep_the_tag(daemon):
    for day in (1, 2):
        daemon.write_request(f"day{day}")
    daemon.serving.registry.champion = 1
    daemon.tick("new_batch_request")
    pinned = daemon.instance.get_run_by_id(daemon.runs[-1].run_id)
    daemon.instance.add_run_tags(pinned.run_id, {"serving/version": "7"})
    daemon.refuse(pinned, "day2")
    assert daemon.tick_after_failure(pinned) is None
    assert daemon.runs[-1].tags["serving/version"] == "7"


@pytest.mark.parametrize("rescore", ["newest", "all"])
@pytest.mark.parametrize("end", [dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED])
def test_a_rollback_scores_again_the_outputs_that_an_unsuccessful_run_may_have_replaced(daemon, rescore, end):
    promoted_after_scoring(daemon, days=2, rescore=rescore)
    time.sleep(0.01)  # the run's end is known to a millisecond
    # It published an output, and ended before Dagster recorded that.
    daemon.instance.handle_new_event(_ended(daemon.runs[-1], end))
    scored = daemon.partitions(daemon.runs[-1])

    daemon.serving.registry.champion = 1
    daemon.tick("new_model_version")

    assert daemon.partitions(daemon.runs[-1]) == scored
    assert daemon.runs[-1].run_config["ops"]["registered_model_version"]["config"] == {"version": 1}
    daemon.finish_all()
    before = len(daemon.runs)
    daemon.serving.registry.champion = 2
    daemon.tick("new_model_version")
    daemon.finish_all()
    daemon.serving.registry.champion = 1
    daemon.tick("new_model_version")
    assert len(daemon.runs) == before + 2


def _set_status(daemon: Daemon, run: dg.DagsterRun, status: dg.DagsterRunStatus) -> None:
    """Change the state of a run in Dagster's storage."""
    if status is dg.DagsterRunStatus.QUEUED:
        server = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=1, location_name="here")
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(server, "repository"), run.job_name)
        daemon.instance.delete_run(run.run_id)
        daemon.instance.add_run(run._replace(remote_job_origin=origin).with_status(status))
    else:
        daemon.instance.handle_new_event(_ended(run, dg.DagsterEventType.RUN_START))


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED])
def test_a_request_is_not_scored_twice_however_long_its_run_takes_or_waits(daemon, monkeypatch, status):
    daemon.read(request_run(daemon, "day1"))
    _set_status(daemon, daemon.runs[0], status)
    later = time.time() + 30 * 3600
    monkeypatch.setattr(time, "time", lambda: later)

    daemon.tick("new_batch_request")

    assert len(daemon.runs) == 1


@pytest.mark.parametrize(("age_s", "requested"), [(200, 0), (400, 1)])
def test_a_run_that_dagster_refused_to_start_is_not_waited_for(daemon, monkeypatch, age_s, requested):
    daemon.write_request("day1")
    daemon.serving.registry.champion = 1
    tags = dict.fromkeys((history.RANGE_START, history.RANGE_END), "day1")
    daemon.instance.add_dynamic_partitions("batch_requests", ["day1"])
    daemon.instance.add_run(dg.DagsterRun(job_name="score_batch", tags=tags))
    later = time.time() + age_s
    monkeypatch.setattr(time, "time", lambda: later)

    daemon.tick("new_batch_request")

    assert len(daemon.runs) == requested


def test_a_run_that_run_monitoring_ends_is_retried(daemon, monkeypatch):
    daemon.read(request_run(daemon, "day1"))
    _set_status(daemon, daemon.runs[0], dg.DagsterRunStatus.STARTED)
    longest = yaml.safe_load((ROOT / "serving_assets" / "dagster.yaml").read_text())["run_monitoring"]
    later = time.time() + longest["max_runtime_seconds"] + 100
    monkeypatch.setattr(time, "time", lambda: later)
    record = daemon.instance.get_run_record_by_id(daemon.runs[0].run_id)

    check_run_timeout(daemon.instance, record, logging.getLogger(), longest["max_runtime_seconds"])
    assert "1 requests whose run failed" in daemon.tick("new_batch_request")
    later += 100
    daemon.tick("new_batch_request")

    assert len(daemon.runs) == 2
