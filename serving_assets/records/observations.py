"""Which content of each request file was read: kept as observations of the asset batch_request, in Dagster's own log.

A sensor's cursor would be lost with it, and Dagster stores it once more with every tick.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import dagster as dg
import msgspec

from serving_assets.records.requests import RequestFile, batch_request

BATCH_OUTPUT = dg.AssetKey("batch_output")
# Dagster's own tags (1.13): what an observed asset's content is, and up to which event an input was taken into account.
DATA_VERSION_TAG = "dagster/data_version"
INPUT_POINTER_TAG = f"dagster/input_event_pointer/{batch_request.key.to_user_string()}"
LOOK, SINCE, REFUSED, AGAIN = "look", "since", "refused", "again"
RECORDS_PER_QUERY = 500


class Seen(msgspec.Struct, frozen=True):
    """One state of a request file."""

    fingerprint: str
    """`RequestFile.fingerprint` when it was read."""
    sha256: str
    event: int = 0
    """Its position in Dagster's event log; later events have higher numbers."""
    since: int = 0
    """Position in the log of the first event of the uninterrupted series with this content."""
    moment_s: float = 0.0
    """When it was read, in seconds since 1970."""


class RequestResult(msgspec.Struct, frozen=True):
    """A request was scored, or refused until something is changed."""

    event: int
    """Its position in Dagster's event log."""
    moment_s: float
    """Seconds since 1970."""
    run: str


def last_seen(instance: dg.DagsterInstance, keys: Collection[str] | None = None) -> dict[str, Seen]:
    """The state of each request's file that was read last, by partition key; of these requests, or of all."""
    observed = dg.DagsterEventType.ASSET_OBSERVATION
    latest = instance.get_latest_storage_id_by_partition(batch_request.key, observed, set(keys) if keys else None)
    found: dict[str, Seen] = {}
    for record in _observations(instance, batch_request.key, latest.values()):
        event = record.asset_observation
        if event is not None and event.partition is not None and LOOK in event.metadata:
            fingerprint, sha256 = str(event.metadata[LOOK].value), event.tags.get(DATA_VERSION_TAG, "")
            since = event.metadata[SINCE].value if SINCE in event.metadata else record.storage_id
            found[event.partition] = Seen(fingerprint, sha256, record.storage_id, int(str(since)), record.timestamp)
    return found


def outcomes(instance: dg.DagsterInstance, keys: Collection[str]) -> dict[str, RequestResult]:
    """How these requests were scored or refused last; those that never were are left out."""
    wanted = set(keys)
    found: dict[str, RequestResult] = {}
    refusals = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, dg.DagsterEventType.ASSET_OBSERVATION)
    for record in _observations(instance, BATCH_OUTPUT, [refusals[key] for key in wanted & refusals.keys()]):
        event = record.asset_observation
        if event is None or event.partition is None or REFUSED not in event.metadata or AGAIN in event.metadata:
            continue
        found[event.partition] = RequestResult(record.storage_id, record.timestamp, record.run_id)
    outputs = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, dg.DagsterEventType.ASSET_MATERIALIZATION)
    for ids in _in_queries([outputs[key] for key in wanted & outputs.keys()]):
        made = dg.AssetRecordsFilter(asset_key=BATCH_OUTPUT, storage_ids=ids)
        for record in instance.fetch_materializations(made, limit=len(ids)).records:
            key, made_by = record.partition_key, RequestResult(record.storage_id, record.timestamp, record.run_id)
            if key is not None and (key not in found or found[key].event < made_by.event):
                found[key] = made_by
    return found


def unsettled(instance: dg.DagsterInstance, seen: Mapping[str, Seen]) -> dict[str, float]:
    """Of these requests, those that were neither scored nor refused since their content was read → when that was."""
    made = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, dg.DagsterEventType.ASSET_MATERIALIZATION)
    said = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, dg.DagsterEventType.ASSET_OBSERVATION)
    open_ones = [key for key, each in seen.items() if made.get(key, 0) < each.since]
    became = outcomes(instance, [key for key in open_ones if said.get(key, 0) >= seen[key].since])
    return {key: seen[key].moment_s for key in open_ones if key not in became or became[key].event < seen[key].since}


def _observations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, events: Collection[int]
) -> Iterator[dg.EventLogRecord]:
    for ids in _in_queries(events):
        yield from instance.fetch_observations(
            dg.AssetRecordsFilter(asset_key=asset, storage_ids=ids), limit=len(ids)
        ).records


def _in_queries(events: Collection[int]) -> Iterator[list[int]]:
    ids = sorted(events)
    for start in range(0, len(ids), RECORDS_PER_QUERY):
        yield ids[start : start + RECORDS_PER_QUERY]


def seen_event(file: RequestFile, sha256: str, before: Seen | None = None) -> dg.AssetObservation:
    """An event that says that this state of the file was read; `before` is what was known of it until now."""
    since: dict[str, int] = {SINCE: before.since} if before is not None and before.sha256 == sha256 else {}
    return dg.AssetObservation(
        batch_request.key,
        partition=file.key,
        metadata={LOOK: file.fingerprint, "bytes": file.size, **since},
        tags={DATA_VERSION_TAG: sha256},
    )


def latest_event(instance: dg.DagsterInstance) -> Mapping[str, str]:
    """The tag that says: everything observed of batch_request up to now was taken into account."""
    found = instance.fetch_observations(batch_request.key, limit=1).records
    return {INPUT_POINTER_TAG: str(found[0].storage_id)} if found else {}


def refused_event(key: str, problem: str, *, again: bool = False) -> dg.AssetObservation:
    """An event that says why a request has no new output; `again`: and that it may have one at another attempt."""
    return dg.AssetObservation(
        BATCH_OUTPUT, partition=key, metadata={REFUSED: problem} | ({AGAIN: True} if again else {}), description=problem
    )


def refused_in_run(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """Keys of the requests that this run refused."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION).records
    refused: set[str] = set()
    for record in records:
        event: Any = record.event_log_entry.asset_observation
        if event is not None and event.asset_key == BATCH_OUTPUT and REFUSED in event.metadata:
            refused.add(str(event.partition))
    return refused
