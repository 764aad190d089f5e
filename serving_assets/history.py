"""What the Dagster instance knows of batch requests: their runs, and the model version of their latest output."""

import time
from collections.abc import Iterable, Mapping

import dagster as dg

from serving_assets.decisions import RequestState, VersionCursor
from serving_assets.requests import batch_requests

BATCH_OUTPUT = dg.AssetKey("batch_output")
PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
ASKED_VERSION, ASKED_SEQUENCE = "serving/model_version", "serving/sequence"

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A worker that was killed leaves its run unfinished for ever unless run monitoring is on: it must not stop the sensors.
ABANDONED_AFTER_S = 3600


def request_state(instance: dg.DagsterInstance, key: str, known: list[str]) -> RequestState:
    """One request's state; `known` are all partition keys, in the order in which ranges run."""
    return RequestState(
        key=key,
        scored_with=scored_with(instance, key),
        run_in_flight=_run_in_flight(instance, key, known),
        asked_before=bool(instance.get_run_records(dg.RunsFilter(tags={PARTITION: key}), limit=1)),
    )


def scored_with(instance: dg.DagsterInstance, key: str) -> str | None:
    """Data version (`name:version`) of the model that made the request's latest batch_output; None if there is none."""
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=BATCH_OUTPUT, asset_partitions=[key]), limit=1
    ).records
    event = found[0].asset_materialization if found else None
    if event is None or "model_name" not in event.metadata:
        return None
    return f"{event.metadata['model_name'].value}:{event.metadata['model_version'].value}"


def recovered_cursor(instance: dg.DagsterInstance, sensor: str) -> VersionCursor:
    """The cursor as the sensor's latest run bears it in its tags: for a sensor whose own was lost."""
    found = instance.get_run_records(dg.RunsFilter(tags={"dagster/sensor_name": sensor}), limit=1)
    tags = found[0].dagster_run.tags if found else {}
    return VersionCursor(handled=tags.get(ASKED_VERSION), sequence=int(tags.get(ASKED_SEQUENCE, "0")))


def known_requests(instance: dg.DagsterInstance) -> list[str]:
    """Every batch request that is a partition, in the order in which they were added."""
    return list(instance.get_dynamic_partitions(str(batch_requests.name)))


def _run_in_flight(instance: dg.DagsterInstance, key: str, known: list[str]) -> str | None:
    for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED)):
        run = record.dagster_run
        scores = run.asset_selection is None or BATCH_OUTPUT in run.asset_selection
        recent = record.create_timestamp.timestamp() > time.time() - ABANDONED_AFTER_S
        if scores and recent and key in _partitions_of(run.tags, known):
            return run.run_id
    return None


def _partitions_of(tags: Mapping[str, str], known: list[str]) -> Iterable[str]:
    if PARTITION in tags:
        return (tags[PARTITION],)
    first, last = tags.get(RANGE_START), tags.get(RANGE_END)
    if first in known and last in known:
        return known[known.index(first) : known.index(last) + 1]
    return ()
