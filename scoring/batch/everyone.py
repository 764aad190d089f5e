"""Writes a batch request with every entity of a model's feature views."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.arrow.timestamps import EARLIEST, LATEST, TIMESTAMP
from scoring.errors import ArgumentError, BatchRequestError, FeatureStoreError
from scoring.features.model_features import ModelFeatures, View
from scoring.files.location import Location
from scoring.files.parquet import no_rows, write_tables
from scoring.files.transfer import publishing
from scoring.imports import inside

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.feast_plugins.offline_query import AsofRetrievalJob


def write_everyone(store: "FeatureStore", features: ModelFeatures, as_of: datetime, destination: Location) -> int:
    """Write a batch request with each entity once, at the time `as_of`, and return the number of rows.

    The entities are the combinations of the model's join keys for which at least one of its views has a row within the
    time to live at `as_of`. Views with fewer join keys do not count. The rows are sorted, so that the same entities
    give the same bytes. With this project's offline store they stream in bounded memory; with another one, all are in
    memory.

    Args:
        store: the Feast store.
        features: the model's features.
        as_of: a time with a zone.
        destination: the `.parquet` file to publish atomically.

    Raises:
        BatchRequestError: the model needs columns that only a request has, no view has all join keys, the folder does
            not exist, or there are no entities. Nothing is published.
        FeatureStoreError: the offline store failed, or can't retrieve rows by a range of dates.
        StorageError: the file can't be written.
    """
    keys = {key.name: key.arrow_type for key in features.join_keys}
    views = [view for view in features.views if {key.name for _, key in view.keys} == keys.keys()]
    if other := [name for name in features.request_columns if name not in (*keys, EVENT_TIMESTAMP)]:
        problem = f"the model needs {', '.join(other)} from the request, and the feature store has only entities"
        raise BatchRequestError(destination.name, f"{problem}: write a request file with these columns.")
    if not views:
        problem = f"no view of the model has all join keys ({', '.join(keys)}), so its entities are unknown"
        raise BatchRequestError(destination.name, f"{problem}: write a request file with the combinations.")
    folder = destination.parent
    if folder.local is not None and not folder.local.is_dir():  # writing would create a misspelled one
        raise BatchRequestError(str(folder), "there is no such folder: create it, or set SERVING_BATCH_REQUESTS.")
    schema = pa.schema(keys | {EVENT_TIMESTAMP: TIMESTAMP})
    time = pa.scalar(as_of, TIMESTAMP)

    def tables() -> Iterator[pa.Table]:
        yield no_rows(schema)
        for table in _entities(store, features, views, as_of):
            yield table.select(list(keys)).append_column(EVENT_TIMESTAMP, pa.repeat(time, table.num_rows)).cast(schema)

    with publishing(destination) as part:
        rows = write_tables(tables(), part, {})
        if rows == 0:
            names = ", ".join(view.name for view in views)
            problem = f"as of {as_of.isoformat()}, no row of {names} is within its time to live: fill the source."
            raise BatchRequestError(destination.name, problem)
    return rows


def everyone_file(as_of: datetime) -> str:
    """Return the file's name: with the date for midnight in UTC, otherwise also with the time."""
    time = as_of.astimezone(UTC)
    form = "%Y-%m-%d" if (time.hour, time.minute, time.second) == (0, 0, 0) else "%Y-%m-%dT%H%M%S"
    return time.strftime(f"everyone-{form}.parquet")


def read_as_of(text: str | None) -> datetime:
    """Return an ISO 8601 time, in UTC unless it has another zone; without one, the latest midnight in UTC.

    Raises:
        ArgumentError: it is not a time, has fractions of a second, which the file's name lacks, or is out of range.
    """
    if text is None:
        return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentError(f"The time {text!r} is not in ISO 8601 format (2026-11-30).") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if time.microsecond or not EARLIEST <= time < LATEST:
        problem = f"The time {text!r} must be from {EARLIEST:%Y} until {LATEST:%Y}, without fractions of a second."
        raise ArgumentError(problem)
    return time


def _entities(
    store: "FeatureStore", features: ModelFeatures, views: Sequence[View], as_of: datetime
) -> Iterator[pa.Table]:
    """Yield each entity of these views once, sorted."""
    from scoring.feast_plugins.offline_query import AsofRetrievalJob

    names = [view.name for view in views]
    doing = f"listing the entities of {', '.join(names)}"
    try:
        with inside(Path(store.repo_path)):
            rows = _retrieved(store, features, views, as_of)
        if not isinstance(rows, AsofRetrievalJob):
            yield rows
            return
        rows.entities_alone(names)
        for batch in rows.to_batches():
            yield pa.Table.from_batches([batch])
    except (FeatureStoreError, GeneratorExit):
        raise
    except TypeError as error:
        kind = store.config.offline_store.type
        raise FeatureStoreError(
            doing, f"offline_store {kind} does not retrieve rows by date range ({error})"
        ) from error
    except Exception as error:  # exception types differ between offline stores
        raise FeatureStoreError(doing, error) from error


def _retrieved(
    store: "FeatureStore", features: ModelFeatures, views: Sequence[View], as_of: datetime
) -> "pa.Table | AsofRetrievalJob":
    """Return the job of this project's store; all entities if another store retrieves them."""
    from scoring.feast_plugins.offline_store import AsofOfflineStoreConfig

    if isinstance(store.config.offline_store, AsofOfflineStoreConfig):
        job: Any = store.get_historical_features(None, features.feast.service, True, EARLIEST, as_of)
        return job
    # Other stores differ in how they combine views and apply times to live, so ask for one view at a time.
    keys, tables = [key.name for key in features.join_keys], []
    for view in views:
        span = as_of - EARLIEST
        if view.ttl_s is not None:
            span = min(span, timedelta(seconds=view.ttl_s))
        column = f"{features.feast.views[view.name].name}:{view.columns[0].partition(':')[2]}"
        found = store.get_historical_features(features=[column], start_date=as_of - span, end_date=as_of).to_arrow()
        columns = {key.name: found[own].cast(key.arrow_type) for own, key in view.keys}
        tables.append(pa.table([columns[key] for key in keys], names=keys))
    table = pa.concat_tables(tables).group_by(keys).aggregate([])
    for key in keys:
        table = table.filter(pc.is_valid(table[key]))
    return table.sort_by([(key, "ascending") for key in keys])
