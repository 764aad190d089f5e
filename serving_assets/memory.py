"""Which content of each request file was read: kept as observations of the asset batch_request, in Dagster's own log.

A sensor's cursor would be lost with it, and Dagster stores it once more with every tick.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import msgspec

from serving_assets.requests import RequestFile, batch_request

BATCH_OUTPUT = dg.AssetKey("batch_output")
# Dagster's own tags (1.13): what an observed asset's content is, and up to which event an input was taken into account.
DATA_VERSION_TAG = "dagster/data_version"
INPUT_POINTER_TAG = f"dagster/input_event_pointer/{batch_request.key.to_user_string()}"
LOOK, REFUSED, AGAIN = "look", "refused", "again"
RECORDS_A_QUERY = 500


class Seen(msgspec.Struct, frozen=True):
    """One state of a request file."""

    look: str
    """`RequestFile.look` when it was read."""
    sha256: str
    event: int = 0
    """Where in Dagster's log it stands; later ones have higher numbers."""


def last_seen(instance: dg.DagsterInstance) -> dict[str, Seen]:
    """The state of each request's file that was read last, by partition key."""
    observed = dg.DagsterEventType.ASSET_OBSERVATION
    latest = instance.get_latest_storage_id_by_partition(batch_request.key, observed)
    found: dict[str, Seen] = {}
    events = sorted(latest.values())
    for start in range(0, len(events), RECORDS_A_QUERY):
        ids = events[start : start + RECORDS_A_QUERY]
        records = instance.fetch_observations(
            dg.AssetRecordsFilter(asset_key=batch_request.key, storage_ids=ids), limit=len(ids)
        ).records
        for record in records:
            event = record.asset_observation
            if event is not None and event.partition is not None and LOOK in event.metadata:
                look, sha256 = str(event.metadata[LOOK].value), event.tags.get(DATA_VERSION_TAG, "")
                found[event.partition] = Seen(look, sha256, record.storage_id)
    return found


def seen_event(file: RequestFile, sha256: str) -> dg.AssetObservation:
    """An event that says that this state of the file was read."""
    return dg.AssetObservation(
        batch_request.key,
        partition=file.key,
        metadata={LOOK: file.look, "bytes": file.size},
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
