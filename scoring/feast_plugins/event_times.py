"""Finds the feature rows that a point-in-time join uses: when they happened, and when they were created."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import FeatureStoreError
from scoring.imports import inside

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

TIME = pa.timestamp("us", "UTC")


class EventTimes(NamedTuple):
    """The rows of one feature view that n entity rows are joined with, regardless of the time to live."""

    event: pa.Array
    """timestamp[us, UTC] (n,); null without a row."""
    created: pa.Array
    """timestamp[us, UTC] (n,); null without a row, or if the source has no created timestamp."""


def read_event_times(
    store: "FeatureStore", views: "dict[str, FeatureView]", request: Path
) -> dict[str, EventTimes] | None:
    """Return view → the rows that the entity rows of a Parquet file are joined with. All are held in memory.

    Args:
        store: the Feast store.
        views: feature views by their names in the feature service.
        request: a file with the join keys and `event_timestamp`, in the types that the join needs.

    Returns None if another offline store than this project's joins one of them.

    Raises:
        FeatureStoreError: the offline store failed.
    """
    from scoring.feast_plugins.offline_query import AsofRetrievalJob
    from scoring.feast_plugins.offline_sql import parquet_files
    from scoring.feast_plugins.offline_store import AsofOfflineStoreConfig, is_readable, join_of

    readable = all(is_readable(view.batch_source) for view in views.values())
    if not isinstance(store.config.offline_store, AsofOfflineStoreConfig) or not readable:
        return None
    joins, columns = [], {}
    for name, view in views.items():
        join = join_of(view, [], full_feature_names=True)
        source = join.source
        times = [source.timestamp_field, *filter(None, [source.created_timestamp_column])]
        joins.append(msgspec.structs.replace(join, ttl=None, features={time: time for time in times}))
        columns[name] = [f"{join.view}:{time}" for time in times]
    query = f"FROM {parquet_files([str(request.absolute())])}"
    try:
        with inside(Path(store.repo_path)):
            batches = list(AsofRetrievalJob(store.config, query, joins, [], [], True).to_batches())
    except FeatureStoreError:
        raise
    except Exception as error:  # exception types differ between sources
        raise FeatureStoreError("joining the event times of feature rows", error) from error
    rows = pa.Table.from_batches(batches)
    found = {}
    for name, (event, *created) in columns.items():
        known = _times(rows[event])
        found[name] = EventTimes(known, _times(rows[created[0]]) if created else pa.nulls(len(known), TIME))
    return found


def _times(column: pa.ChunkedArray) -> pa.Array:
    """Return timestamps of any unit; one without a zone is UTC."""
    if not column.type.tz:
        column = pc.assume_timezone(column, "UTC")
    return column.cast(TIME, safe=False).combine_chunks()
