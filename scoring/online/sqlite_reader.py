"""Many entities of Feast's SQLite online store in one query a feature view."""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

from scoring.feast_plugins.entity_keys import entity_keys
from scoring.feast_plugins.value_decoder import decode_values
from scoring.online.reading import StoreRead, ViewColumns

if TYPE_CHECKING:
    from feast import FeatureStore

# SQLite takes more (32 766), with a query plan that is made anew for each number of them.
KEYS_PER_QUERY = 500
WAIT_FOR_WRITER_S = 1.0


class SqliteReader:
    """A `StoreReader` of one database file. Each thread has a connection of its own.

    Opened for writing, though nothing is written: whoever reads first after a writer was killed has to roll back what
    it left half-way.
    """

    store_errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(self, file: str, project: str, views: Sequence[ViewColumns]) -> None:
        """Args: the database, Feast's project, and what to read."""
        self._uri = f"{Path(file).absolute().as_uri()}?mode=rw"
        self._views = [(view, _quote_id(_table_id(project, view.view))) for view in views]
        self._connections = threading.local()

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """See `StoreReader.read`."""
        written_s: dict[str, np.ndarray] = {}
        columns: dict[str, pa.Array] = {}
        for view, table in self._views:
            written_s[view.name] = self._read_view(view, table, entity_keys(view.keys, entity_rows), columns)
        return StoreRead(written_s, columns)

    def _read_view(
        self, view: ViewColumns, table: str, keys: Sequence[bytes], columns: dict[str, pa.Array]
    ) -> np.ndarray:
        values: dict[tuple[bytes, str], bytes] = {}
        written: dict[bytes, int] = {}
        names = [feature.name for feature in view.features]
        wanted = list(dict.fromkeys(keys))
        for key, name, value, moment in self._rows(table, names, wanted):
            values[key, name] = value
            # The features of one row are written together; of one whose view has got a feature more, not.
            written[key] = min(moment, written.get(key, moment))
        missing = [key for key in wanted if key not in written]
        written |= dict(self._moments(table, missing))
        for name, feature in zip(names, view.features, strict=True):
            columns[feature.column] = decode_values([values.get((key, name)) for key in keys], feature.dtype)
        seconds = {moment: _utc_seconds(moment) for moment in set(written.values())}
        return np.fromiter((seconds[written[key]] if key in written else 0.0 for key in keys), np.float64, len(keys))

    def _rows(self, table: str, features: list[str], keys: list[bytes]) -> Iterator[tuple[bytes, str, bytes, int]]:
        for some in _slices(keys):
            yield from self._connection().execute(
                f"SELECT entity_key, feature_name, value, event_ts FROM {table} "
                f"WHERE entity_key IN ({_marks(some)}) AND feature_name IN ({_marks(features)})",
                [*some, *features],
            )

    def _moments(self, table: str, keys: list[bytes]) -> Iterator[tuple[bytes, int]]:
        """Of entities without any of the features: whether, and since when, they are there at all."""
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
    """A reader of the store's database; None where it keeps vectors."""
    config = store.config
    if config.online_store.vector_enabled:
        return None
    return SqliteReader(SqliteOnlineStore._get_db_path(config), store.project, views)


def _slices(keys: list[bytes]) -> Iterator[list[bytes]]:
    return (keys[start : start + KEYS_PER_QUERY] for start in range(0, len(keys), KEYS_PER_QUERY))


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _utc_seconds(moment: int) -> float:
    # Feast writes a UTC time as if it were one of this machine's time zone, and reads it back so.
    return datetime.fromtimestamp(moment).replace(tzinfo=UTC).timestamp()
