"""Implements `Writer` of `online_writers.py` for Feast's SQLite online store, in short transactions."""

import contextlib
import sqlite3
import time
from itertools import chain, repeat

import numpy as np
from feast import FeatureView
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id, adapt_datetime_epoch
from feast.repo_config import RepoConfig

from scoring.feast_plugins.encoded_rows import EncodedRows, FeastRows

# A SQLite transaction ends after this time. Each transaction waits for the disk several times. It also blocks readers:
# the API waits for a second (`scoring.online.sqlite_reader`).
TRANSACTION_S = 0.3


class SqliteWriter:
    """Writes rows of one table, in short transactions, because readers wait meanwhile."""

    def __init__(self, config: RepoConfig, view: FeatureView, store: SqliteOnlineStore) -> None:
        """Connect lazily at the first row."""
        self._config = config
        self._view = view
        self._store = store
        self._table = _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
        self._features = [feature.name for feature in view.features]
        self._began: float | None = None

    def matches_feast(self, rows: EncodedRows, feasts: FeastRows) -> bool:
        """See `Writer`."""
        query = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        created = self._store._get_conn(self._config).execute(query, (self._table,)).fetchone()
        if created is None:
            return False  # the view is not applied, which Feast's own code reports
        contents = []
        for by_feast in (True, False):
            with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                connection.execute(created[0])
                if by_feast:
                    store = SqliteOnlineStore()
                    store._conn = connection
                    store.online_write_batch(self._config, self._view, list(feasts), None)
                else:
                    self._insert(connection, rows)
                ordered = f"SELECT * FROM {_quote_id(self._table)} ORDER BY entity_key, feature_name"  # noqa: S608
                contents.append(connection.execute(ordered).fetchall())
        return contents[0] == contents[1]

    def write(self, rows: EncodedRows) -> None:
        """See `Writer`."""
        connection = self._store._get_conn(self._config)
        self._began = self._began or time.monotonic()
        self._insert(connection, rows)
        if time.monotonic() - self._began > TRANSACTION_S:
            self.finish()

    def finish(self) -> None:
        """See `Writer`."""
        if self._began is not None:
            self._store._get_conn(self._config).commit()
            self._began = None

    def _insert(self, connection: sqlite3.Connection, rows: EncodedRows) -> None:
        event_ts = _stored_times(rows.event_us)
        created_ts = repeat(None) if rows.created_us is None else _stored_times(rows.created_us)
        texts = rows.texts()
        by_feature = [
            zip(rows.keys, repeat(name), rows.values[name], texts[name], event_ts, created_ts, strict=False)
            for name in self._features
        ]
        columns = ("entity_key", "feature_name", "value", "value_text", "event_ts", "created_ts")
        changed = ", ".join(f"{name} = excluded.{name}" for name in columns[2:])
        insert = (
            f"INSERT INTO {_quote_id(self._table)} ({', '.join(columns)}) VALUES (?, ?, ?, ?, ?, ?) "  # noqa: S608
            f"ON CONFLICT(entity_key, feature_name) DO UPDATE SET {changed}"
        )
        connection.executemany(insert, chain.from_iterable(zip(*by_feature, strict=True)))


def _stored_times(microseconds: np.ndarray) -> list[int | None]:
    """Return times as Feast's SQLite adapter stores them: in seconds, with the UTC time interpreted as local time."""
    times, places = np.unique(microseconds.astype("datetime64[us]"), return_inverse=True)
    stored = [None if each is None else adapt_datetime_epoch(each) for each in times.astype(object)]
    return np.array(stored, object)[places].tolist()  # type: ignore[no-any-return]
