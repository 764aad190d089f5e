"""What the Dagster instance knows of batch requests: their runs, and the model version of their latest output."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg
import msgspec

from scoring.batch.quality import ROWS_TO_TELL_DRIFT
from serving_assets.records.decisions import Registered, RequestState, VersionCursor
from serving_assets.records.observations import BATCH_OUTPUT, RECORDS_PER_QUERY
from serving_assets.records.requests import batch_requests

PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
ASKED_VERSION, ASKED_SEQUENCE = "serving/model_version", "serving/sequence"
ASKED_CREATED = "serving/model_registered_ms"

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# Of the failed runs, so many of the newest are looked at, and so many where some request may be behind those.
FAILED_RUNS, MOST_FAILED_RUNS = 200, 10_000
# A run writes down its end by the clock of its own machine.
CLOCKS_DIFFER_S = 30


def request_states(instance: dg.DagsterInstance, keys: Sequence[str], known: Sequence[str]) -> list[RequestState]:
    """The states of some requests; `known` are all partition keys, in the order in which ranges run."""
    busy = runs_in_flight(instance, known)
    newest = keys[-1] if keys else None
    scored = _outputs(instance, keys)
    unsure = _touched_since(instance, {key: output.made_s for key, output in scored.items()}, known)
    return [
        RequestState(
            key=key,
            scored_with=scored[key].version if key in scored else None,
            unsure=key in unsure,
            run_in_flight=busy.get(key),
            # Asked of the newest alone: older ones were offered to new_batch_request long ago.
            asked_before=key != newest or _has_a_run(instance, key),
        )
        for key in keys
    ]


def runs_in_flight(instance: dg.DagsterInstance, known: Sequence[str]) -> dict[str, str]:
    """Requests that a run is scoring, or is queued to: key → run."""
    found: dict[str, str] = {}
    for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED)):
        run = record.dagster_run
        if scores_requests(run):
            found |= dict.fromkeys(partitions_of(run.tags, known), run.run_id)
    return found


def failed_runs(
    instance: dg.DagsterInstance, known: Sequence[str], unsettled: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Runs over requests that failed: request → run → when, in seconds since 1970.

    Args:
        instance: Dagster's.
        known: all partition keys, in the order in which ranges run.
        unsettled: requests that were neither scored nor refused since their content was read → when that was. The runs
            since then are all looked through; of others, only the newest ones are known.
    """
    found: dict[str, dict[str, float]] = {}
    for run, end in _failed(instance, unsettled):
        if scores_requests(run):
            for key in partitions_of(run.tags, known):
                found.setdefault(key, {})[run.run_id] = end
    return found


def _failed(instance: dg.DagsterInstance, unsettled: Mapping[str, float]) -> list[tuple[dg.DagsterRun, float]]:
    """Runs that failed and when: the newest ones, and all since the first of the unsettled requests was read."""
    failed = [dg.DagsterRunStatus.FAILURE]
    records = list(instance.get_run_records(dg.RunsFilter(statuses=failed), limit=FAILED_RUNS))
    if unsettled and len(records) == FAILED_RUNS:
        # By their end: a run may have waited long before it began, behind all that failed meanwhile.
        since = datetime.fromtimestamp(min(unsettled.values()) - CLOCKS_DIFFER_S, UTC)
        records += instance.get_run_records(dg.RunsFilter(statuses=failed, updated_after=since), limit=MOST_FAILED_RUNS)
    return _ends(records)


def _ends(records: Iterable[dg.RunRecord]) -> list[tuple[dg.DagsterRun, float]]:
    """Runs that ended, and when, in seconds since 1970."""
    return [(record.dagster_run, record.end_time or record.update_timestamp.timestamp()) for record in records]


def failed_since(instance: dg.DagsterInstance, moment_s: float) -> bool:
    """Whether any run failed since then, in seconds since 1970."""
    since = datetime.fromtimestamp(moment_s, UTC)
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    return bool(instance.get_run_records(filters, limit=1))


def scores_requests(run: dg.DagsterRun) -> bool:
    """Whether it is one of the runs that make batch outputs."""
    return run.asset_selection is None or BATCH_OUTPUT in run.asset_selection


def partitions_of(tags: Mapping[str, str], known: Sequence[str]) -> Iterable[str]:
    """The requests that a run with these tags is about, as far as they are among `known`, all partition keys."""
    if PARTITION in tags:
        return (tags[PARTITION],)
    first, last = tags.get(RANGE_START), tags.get(RANGE_END)
    if first in known and last in known:
        return known[known.index(first) : known.index(last) + 1]
    return ()


class _Output(msgspec.Struct, frozen=True):
    """The latest batch_output of a request that Dagster knows of."""

    version: Registered
    made_s: float
    """When that was written down, in seconds since 1970."""


def _touched_since(instance: dg.DagsterInstance, made_s: Mapping[str, float], known: Sequence[str]) -> set[str]:
    """Requests with a run that did not succeed and ended since then.

    It may have replaced their outputs, which Dagster hears of only when the step over all of its requests has ended.
    """
    if not made_s:
        return set()
    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    since = datetime.fromtimestamp(min(made_s.values()) - CLOCKS_DIFFER_S, UTC)
    records = instance.get_run_records(dg.RunsFilter(statuses=ended, updated_after=since), limit=MOST_FAILED_RUNS)
    return {
        key
        for run, end_s in _ends(records)
        if scores_requests(run)
        for key in partitions_of(run.tags, known)
        if key in made_s and end_s > made_s[key]
    }


def _outputs(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, _Output]:
    """Requests without one are left out."""
    # In a few queries: one a request takes 10 ms, and a tick may ask for thousands.
    latest = _latest_outputs(instance, keys)
    events = sorted(latest.values())
    found: dict[str, _Output] = {}
    for start in range(0, len(events), RECORDS_PER_QUERY):
        ids = events[start : start + RECORDS_PER_QUERY]
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=BATCH_OUTPUT, storage_ids=ids), limit=len(ids)
        ).records
        for record in records:
            event = record.asset_materialization
            if event is not None and event.partition is not None and "model_name" in event.metadata:
                found[event.partition] = _Output(_registered(event), record.timestamp)
    return found


def newest_scored(instance: dg.DagsterInstance, keys: Sequence[str]) -> str | None:
    """The last of these requests that has a batch_output."""
    latest = _latest_outputs(instance, keys)
    return next((key for key in reversed(keys) if key in latest), None)


def _latest_outputs(instance: dg.DagsterInstance, keys: Sequence[str]) -> dict[str, int]:
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    # A filter by keys is a parameter for each of them, of which SQLite takes 32 766.
    partitions = set(keys) if len(keys) == 1 else None
    latest = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, made, partitions)
    return {key: latest[key] for key in keys if key in latest}


def _registered(event: dg.AssetMaterialization) -> Registered:
    said = event.metadata
    created = said.get("model_registered")
    return Registered(
        f"{said['model_name'].value}:{said['model_version'].value}",
        round(float(str(created.value)) * 1000) if created else 0,
    )


def last_scored_request(instance: dg.DagsterInstance, other_than: Iterable[str]) -> str | None:
    """The request that was scored most recently, of those not among `other_than`.

    Rather one with enough predictions to tell drift, where there is one among the last 50.
    """
    excluded = set(other_than)
    records = instance.fetch_materializations(BATCH_OUTPUT, limit=len(excluded) + 50).records
    others = [each for each in records if each.partition_key is not None and each.partition_key not in excluded]
    telling = [each for each in others if _predictions(each) >= ROWS_TO_TELL_DRIFT]
    return next((each.partition_key for each in [*telling, *others]), None)


def _predictions(record: dg.EventLogRecord) -> float:
    event = record.asset_materialization
    scored = event.metadata.get("rows_scored") if event is not None else None
    return float(str(scored.value)) if scored else 0


def recovered_cursor(instance: dg.DagsterInstance, sensor: str) -> VersionCursor:
    """The cursor as the sensor's latest run bears it in its tags: for a sensor whose own was lost."""
    found = instance.get_run_records(dg.RunsFilter(tags={"dagster/sensor_name": sensor}), limit=1)
    tags = found[0].dagster_run.tags if found else {}
    asked = tags.get(ASKED_VERSION)
    handled = Registered(asked, int(tags.get(ASKED_CREATED, "0"))) if asked else None
    return VersionCursor(handled, int(tags.get(ASKED_SEQUENCE, "0")))


def known_requests(instance: dg.DagsterInstance) -> list[str]:
    """Every batch request that is a partition, in the order in which they were added."""
    return list(instance.get_dynamic_partitions(str(batch_requests.name)))


def run_request(
    first: str,
    last: str,
    run_key: str,
    run_config: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.RunRequest:
    """Ask for one run over the requests from `first` to `last`."""
    if first == last:
        return dg.RunRequest(run_key=run_key, partition_key=first, run_config=run_config, tags=tags)
    tags = {**(tags or {}), RANGE_START: first, RANGE_END: last}
    return dg.RunRequest(run_key=run_key, run_config=run_config, tags=tags)


def _has_a_run(instance: dg.DagsterInstance, key: str) -> bool:
    # The newest request is the last one of the range that it was first scored in.
    filters = [dg.RunsFilter(tags={tag: key}) for tag in (PARTITION, RANGE_END)]
    return any(instance.get_run_records(each, limit=1) for each in filters)
