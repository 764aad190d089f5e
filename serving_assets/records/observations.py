"""Record as observations in Dagster's event log which content of each request file was read, and what was refused.

A sensor's cursor is unsuitable: it can be lost, and Dagster stores all of it again with every tick.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import dagster as dg
import msgspec

from serving_assets.records.requests import BATCH_REQUEST, Folder, RequestFile

BATCH_OUTPUT = dg.AssetKey("batch_output")
SCORES_TABLE = dg.AssetKey("scores_table")
# Dagster's tags (1.13): the data version of an observed asset, and the last event of an input that was used.
DATA_VERSION_TAG = "dagster/data_version"
INPUT_POINTER_TAG = f"dagster/input_event_pointer/{BATCH_REQUEST.to_user_string()}"
# Metadata keys of the observations. Observations of earlier releases must stay readable.
FINGERPRINT, SINCE, REFUSED, RETRIED, IGNORED = "look", "since", "refused", "again", "ignored"
RECORDS_PER_QUERY = 500

T = TypeVar("T")


class Seen(msgspec.Struct, frozen=True):
    """One state of a request file."""

    fingerprint: str
    """`RequestFile.fingerprint` at the time of reading."""
    sha256: str
    event: int = 0
    """Its id in Dagster's event log; later events have higher ids."""
    since: int = 0
    """Id of the first event of the uninterrupted series with this content."""


def last_seen(instance: dg.DagsterInstance, keys: Collection[str] | None = None) -> dict[str, Seen]:
    """Return the last read state of each request's file by partition key, for these requests or all."""
    observed = dg.DagsterEventType.ASSET_OBSERVATION
    latest = instance.get_latest_storage_id_by_partition(BATCH_REQUEST, observed, set(keys) if keys else None)
    found: dict[str, Seen] = {}
    for record in _observations(instance, BATCH_REQUEST, latest.values()):
        event = record.asset_observation
        if event is not None and event.partition is not None and FINGERPRINT in event.metadata:
            fingerprint, sha256 = str(event.metadata[FINGERPRINT].value), event.tags.get(DATA_VERSION_TAG, "")
            since = event.metadata[SINCE].value if SINCE in event.metadata else record.storage_id
            found[event.partition] = Seen(fingerprint, sha256, record.storage_id, int(str(since)))
    return found


def last_refusals(instance: dg.DagsterInstance, keys: Iterable[str]) -> dict[str, dg.EventLogRecord]:
    """Return the last refusal of each of these requests. Omit requests without one, and those that are retried."""
    latest = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, dg.DagsterEventType.ASSET_OBSERVATION)
    found: dict[str, dg.EventLogRecord] = {}
    for record in _observations(instance, BATCH_OUTPUT, [latest[key] for key in keys if key in latest]):
        event = record.asset_observation
        if event is not None and event.partition and REFUSED in event.metadata and RETRIED not in event.metadata:
            found[event.partition] = record
    return found


def _observations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, events: Collection[int]
) -> Iterator[dg.EventLogRecord]:
    for ids in in_queries(sorted(events)):
        yield from instance.fetch_observations(
            dg.AssetRecordsFilter(asset_key=asset, storage_ids=ids), limit=len(ids)
        ).records


def in_queries(values: list[T]) -> Iterator[list[T]]:
    """Yield the values in lists of at most RECORDS_PER_QUERY, each short enough for one query."""
    for start in range(0, len(values), RECORDS_PER_QUERY):
        yield values[start : start + RECORDS_PER_QUERY]


def seen_event(file: RequestFile, sha256: str, before: Seen | None = None) -> dg.AssetObservation:
    """Return the event that records that this state of the file was read; `before` is the previous state."""
    since: dict[str, int] = {SINCE: before.since} if before is not None and before.sha256 == sha256 else {}
    return dg.AssetObservation(
        BATCH_REQUEST,
        partition=file.key,
        metadata={FINGERPRINT: file.fingerprint, "bytes": file.size, **since},
        tags={DATA_VERSION_TAG: sha256},
    )


def ignored_event(folder: Folder) -> dg.AssetObservation:
    """Return the event that records which files of the request folder are ignored, and why."""
    return dg.AssetObservation(BATCH_REQUEST, description=folder.ignored, metadata={IGNORED: folder.ignored})


def latest_event(instance: dg.DagsterInstance) -> Mapping[str, str]:
    """Return the tag that marks all observations of batch_request up to now as used."""
    found = instance.fetch_observations(BATCH_REQUEST, limit=1).records
    return {INPUT_POINTER_TAG: str(found[0].storage_id)} if found else {}


def refused_event(key: str, problem: str, *, retried: bool = False) -> dg.AssetObservation:
    """Return the event that records why a request has no new output, and whether another run may succeed."""
    metadata: dict[str, str | bool] = {REFUSED: problem} | ({RETRIED: True} if retried else {})
    return dg.AssetObservation(BATCH_OUTPUT, partition=key, metadata=metadata, description=problem)


def refused_in_run(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """Return the keys of the requests that this run refused."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION).records
    refused: set[str] = set()
    for record in records:
        event: Any = record.event_log_entry.asset_observation
        if event is not None and event.asset_key == BATCH_OUTPUT and REFUSED in event.metadata:
            refused.add(str(event.partition))
    return refused
