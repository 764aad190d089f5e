"""Reads many entities from Feast's SQLite online store, KEYS_PER_QUERY entities per query."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

from scoring.feast_plugins.entity_keys import entity_keys
from scoring.feast_plugins.value_decoder import decode_values
from scoring.online.reading import EntityRows, StoreRead, StoreReader, ViewColumns, distinct_entities, merged

if TYPE_CHECKING:
    from feast import FeatureStore

# SQLite accepts more (32,766), but plans a new query for each number of keys.
KEYS_PER_QUERY = 500
WAIT_FOR_WRITER_S = 1.0


class SqliteReader(StoreReader):
    """A `StoreReader` of one database file. Each thread has its own connection.

    Connections are opened for writing, although they only read: the first reader after a writer was killed must roll
    back the writer's unfinished transaction.
    """

    store_errors = (sqlite3.Error, OSError)

    def __init__(self, file: str, project: str, views: Sequence[ViewColumns]) -> None:
        """Store the database, the Feast project, and the features to read."""
        self._uri = f"{Path(file).absolute().as_uri()}?mode=rw"
        self._views = [(view, _quote_id(_table_id(project, view.view))) for view in views]
        self._connections = threading.local()

    def read(self, entity_rows: EntityRows) -> StoreRead:
        """See `StoreReader.read`."""
        reads = []
        for view, table in self._views:
            entities, places = distinct_entities(view.keys, entity_rows)
            read = self._read_view(view, table, entity_keys(view.keys, entities))
            reads.append(read if places is None else read.take(places))
        return merged(reads)

    def _read_view(self, view: ViewColumns, table: str, keys: list[bytes]) -> StoreRead:
        values: dict[tuple[bytes, str], bytes] = {}
        stored: dict[bytes, int] = {}
        names = [feature.name for feature in view.features]
        for key, name, value, event_ts in self._values(table, names, keys):
            values[key, name] = value
            # The features of a row are written together, unless a feature was added to the view later.
            stored[key] = min(event_ts, stored.get(key, event_ts))
        stored |= dict(self._event_times(table, [key for key in keys if key not in stored]))
        columns = {
            feature.column: decode_values([values.get((key, name)) for key in keys], feature.dtype)
            for name, feature in zip(names, view.features, strict=True)
        }
        seconds = {event_ts: _utc_seconds(event_ts) for event_ts in set(stored.values())}
        event_s = [seconds[stored[key]] if key in stored else 0.0 for key in keys]
        return StoreRead({view.name: np.array(event_s)}, columns)

    def _values(self, table: str, names: list[str], keys: list[bytes]) -> Iterator[tuple[bytes, str, bytes, int]]:
        for some in _slices(keys):
            yield from self._connection().execute(
                f"SELECT entity_key, feature_name, value, event_ts FROM {table} "
                f"WHERE entity_key IN ({_marks(some)}) AND feature_name IN ({_marks(names)})",
                [*some, *names],
            )

    def _event_times(self, table: str, keys: list[bytes]) -> Iterator[tuple[bytes, int]]:
        """Yield the event times of entities with rows, even if the rows have none of the features."""
        for some in _slices(keys):
            yield from self._connection().execute(
                f"SELECT entity_key, MIN(event_ts) FROM {table} WHERE entity_key IN ({_marks(some)}) "
                "GROUP BY entity_key",
                some,
            )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._connections, "mine", None)
        if connection is None:
            connection = self._connections.mine = sqlite3.connect(self._uri, WAIT_FOR_WRITER_S, uri=True)
            connection.execute("PRAGMA query_only = ON")
        return connection


def sqlite_reader(store: "FeatureStore", views: Sequence[ViewColumns]) -> SqliteReader | None:
    """Return a reader of the store's database; None if vector search is enabled."""
    config = store.config
    if config.online_store.vector_enabled:
        return None
    return SqliteReader(SqliteOnlineStore._get_db_path(config), store.project, views)


def _slices(keys: list[bytes]) -> Iterator[list[bytes]]:
    return (keys[start : start + KEYS_PER_QUERY] for start in range(0, len(keys), KEYS_PER_QUERY))


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _utc_seconds(event_ts: int) -> float:
    # Feast writes a UTC time as if it were in this machine's time zone, and reads it back the same way.
    return datetime.fromtimestamp(event_ts).replace(tzinfo=UTC).timestamp()
