"""Query Dagster's instance about batch requests: their runs, and the model version of their latest output."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg
import msgspec

from scoring.monitoring.drift import MIN_ROWS_FOR_DRIFT
from serving_assets.records.decisions import Registered, RequestState, VersionCursor
from serving_assets.records.observations import BATCH_OUTPUT, in_queries
from serving_assets.records.requests import batch_requests

PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
VERSION_TAG, SEQUENCE_TAG = "serving/model_version", "serving/sequence"
REGISTERED_TAG = "serving/model_registered_ms"

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# Dagster submits a run immediately after its creation. If it refuses the run (for a range of partitions that do not
# exist, for example), the run stays NOT_STARTED (1.13).
SUBMITTED_WITHIN_S = 300
MOST_FAILED_RUNS = 10_000
# The clock of a run's own machine determines its end time.
CLOCKS_DIFFER_S = 30


def request_states(instance: dg.DagsterInstance, keys: Sequence[str], known: Sequence[str]) -> list[RequestState]:
    """Return the states of these requests; `known` are all partition keys in Dagster's order."""
    busy = requests_in_flight(unfinished_runs(instance), known)
    newest = keys[-1] if keys else None
    scored = _outputs(instance, keys)
    may_be_replaced = _touched_since(instance, {key: output.made_s for key, output in scored.items()}, known)
    return [
        RequestState(
            key=key,
            scored_with=scored[key].version if key in scored else None,
            may_be_replaced=key in may_be_replaced,
            run_in_flight=busy.get(key),
            # Query this for the newest only: new_batch_request has already found the older ones.
            has_run=key != newest or _has_a_run(instance, key),
        )
        for key in keys
    ]


def unfinished_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Return the running and queued runs that score requests."""
    oldest_s = time.time() - SUBMITTED_WITHIN_S
    return [
        record.dagster_run
        for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED))
        if scores_requests(record.dagster_run)
        and (
            record.dagster_run.status != dg.DagsterRunStatus.NOT_STARTED
            or record.create_timestamp.timestamp() > oldest_s
        )
    ]


def requests_in_flight(runs: Iterable[dg.DagsterRun], known: Sequence[str]) -> dict[str, str]:
    """Return the requests of these runs: key → run id; `known` are all partition keys."""
    return {key: run.run_id for run in runs for key in partitions_of(run.tags, known)}


def with_end_times(records: Iterable[dg.RunRecord]) -> list[tuple[dg.DagsterRun, float]]:
    """Return the runs of these records with the times at which they ended, in seconds since 1970."""
    return [(record.dagster_run, record.end_time or record.update_timestamp.timestamp()) for record in records]


def failed_since(instance: dg.DagsterInstance, time_s: float) -> bool:
    """Return whether any run failed since a time in seconds since 1970."""
    since = datetime.fromtimestamp(time_s, UTC)
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    return bool(instance.get_run_records(filters, limit=1))


def scores_requests(run: dg.DagsterRun) -> bool:
    """Return whether the run materializes batch outputs."""
    return run.asset_selection is None or BATCH_OUTPUT in run.asset_selection


def partitions_of(tags: Mapping[str, str], known: Sequence[str]) -> Iterable[str]:
    """Return the requests of a run with these tags; `known` are all partition keys."""
    if PARTITION in tags:
        return (tags[PARTITION],)
    first, last = tags.get(RANGE_START), tags.get(RANGE_END)
    if first in known and last in known:
        return known[known.index(first) : known.index(last) + 1]
    return ()


class _Output(msgspec.Struct, frozen=True):
    """The latest batch_output of a request in Dagster's event log."""

    version: Registered
    made_s: float
    """Time at which Dagster recorded it, in seconds since 1970."""


def _touched_since(instance: dg.DagsterInstance, made_s: Mapping[str, float], known: Sequence[str]) -> set[str]:
    """Return the requests with an unsuccessful run that ended after their outputs were recorded.

    It may have replaced their outputs: Dagster records outputs only when the step over all requests has ended.
    """
    if not made_s:
        return set()
    unsuccessful = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    since = datetime.fromtimestamp(min(made_s.values()) - CLOCKS_DIFFER_S, UTC)
    records = instance.get_run_records(
        dg.RunsFilter(statuses=unsuccessful, updated_after=since), limit=MOST_FAILED_RUNS
    )
    return {
        key
        for run, end_s in with_end_times(records)
        if scores_requests(run)
        for key in partitions_of(run.tags, known)
        if key in made_s and end_s > made_s[key]
    }


def _outputs(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, _Output]:
    """Return the latest outputs of these requests. Omit requests without one."""
    # Use few queries: one per request takes 10 ms, and a tick may need thousands.
    latest = _latest_outputs(instance, keys)
    found: dict[str, _Output] = {}
    for ids in in_queries(sorted(latest.values())):
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=BATCH_OUTPUT, storage_ids=ids), limit=len(ids)
        ).records
        for record in records:
            event = record.asset_materialization
            if event is not None and event.partition is not None and "model_name" in event.metadata:
                found[event.partition] = _Output(_registered(event), record.timestamp)
    return found


def newest_scored(instance: dg.DagsterInstance, keys: Sequence[str], most: int = 1) -> list[str]:
    """Return the last of these requests that have a batch_output, at most `most` of them, the newest first."""
    latest = _latest_outputs(instance, keys)
    return [key for key in reversed(keys) if key in latest][:most]


def _latest_outputs(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, int]:
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    # A filter by keys has one parameter per key, and SQLite takes 32,766.
    partitions = set(keys) if len(keys) == 1 else None
    latest = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, made, partitions)
    return {key: latest[key] for key in keys if key in latest}


def _registered(event: dg.AssetMaterialization) -> Registered:
    metadata = event.metadata
    created = metadata.get("model_registered")
    return Registered(
        f"{metadata['model_name'].value}:{metadata['model_version'].value}",
        round(float(str(created.value)) * 1000) if created else 0,
    )


def last_scored_request(instance: dg.DagsterInstance, other_than: Iterable[str]) -> str | None:
    """Return the most recently scored request that is not in `other_than`.

    Prefer one with enough predictions to measure drift, if the last 50 include one.
    """
    excluded = set(other_than)
    records = instance.fetch_materializations(BATCH_OUTPUT, limit=len(excluded) + 50).records
    others = [each for each in records if each.partition_key is not None and each.partition_key not in excluded]
    large = [each for each in others if _predictions(each) >= MIN_ROWS_FOR_DRIFT]
    return next((each.partition_key for each in [*large, *others]), None)


def _predictions(record: dg.EventLogRecord) -> float:
    event = record.asset_materialization
    scored = event.metadata.get("rows_scored") if event is not None else None
    return float(str(scored.value)) if scored else 0


def recovered_cursor(instance: dg.DagsterInstance, sensor: str) -> VersionCursor:
    """Recover the lost cursor of a sensor from the tags of its latest run."""
    found = instance.get_run_records(dg.RunsFilter(tags={"dagster/sensor_name": sensor}), limit=1)
    tags = found[0].dagster_run.tags if found else {}
    version = tags.get(VERSION_TAG)
    handled = Registered(version, int(tags.get(REGISTERED_TAG, "0"))) if version else None
    return VersionCursor(handled, int(tags.get(SEQUENCE_TAG, "0")))


def known_requests(instance: dg.DagsterInstance) -> list[str]:
    """Return all partition keys of batch requests, in the order in which they were added."""
    return list(instance.get_dynamic_partitions(str(batch_requests.name)))


def run_request(
    first: str,
    last: str,
    run_key: str,
    run_config: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.RunRequest:
    """Return a RunRequest over the batch requests from `first` to `last`."""
    if first == last:
        return dg.RunRequest(run_key=run_key, partition_key=first, run_config=run_config, tags=tags)
    tags = {**(tags or {}), RANGE_START: first, RANGE_END: last}
    return dg.RunRequest(run_key=run_key, run_config=run_config, tags=tags)


def _has_a_run(instance: dg.DagsterInstance, key: str) -> bool:
    # The newest request is the last one of the range in which it was first scored.
    filters = [dg.RunsFilter(tags={tag: key}) for tag in (PARTITION, RANGE_END)]
    return any(instance.get_run_records(each, limit=1) for each in filters)
