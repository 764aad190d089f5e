"""Rows written to Feast's Redis and SQLite online stores many at a time, as Feast itself leaves them there.

A writer knows a store's layout. Its `matches_feast` compares it with what Feast's own class would write.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
from feast import FeatureView
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisType, _versioned_fv_name
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id, adapt_datetime_epoch
from feast.repo_config import RepoConfig

from scoring.feast_plugins.value_encoder import encode_timestamps

if TYPE_CHECKING:
    from redis import Redis

# Redis serves nobody else during a call: these take it about 2 ms.
ROWS_PER_CALL = 500
# What Redis takes in one command, and what Lua can unpack.
VALUES_PER_CALL, MOST_FEATURES = 200_000, 2000
# After that a transaction of SQLite ends. Each costs several waits for the disk, and nobody reads while it lasts: the
# API waits for a second (`scoring.online.sqlite_reader`).
TRANSACTION_S = 0.3

# For each key: unless its hash holds a row that is as new or newer, set the row's fields. Feast compares the same way,
# in nanoseconds, where a moment up to 1970 counts as none; but it reads all moments before it writes, so that an older
# row may win against another writer (0.67), while a script is alone.
SCRIPT = """
local life, always, width = tonumber(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[3])
local function varint(bytes, at)
  local value, scale = 0, 1
  for place = 0, 9 do
    local byte = string.byte(bytes, at + place)
    value = value + (byte % 128) * scale
    if byte < 128 then
      if place == 9 then value = -1 end
      return value, at + place + 1
    end
    scale = scale * 128
  end
end
local function moment(bytes)
  local seconds, nanos, at = 0, 0, 1
  while at <= #bytes do
    local tag = string.byte(bytes, at)
    local value
    value, at = varint(bytes, at + 1)
    if tag == 8 then seconds = value else nanos = value end
  end
  return seconds, nanos
end
local fields = {}
for j = 0, width - 1 do fields[2 * j + 1] = ARGV[4 + j] end
local at = 4 + width
for i = 1, #KEYS do
  local newer = true
  local stored = not always and redis.call('HGET', KEYS[i], ARGV[4])
  if stored then
    local old_seconds, old_nanos = moment(stored)
    if old_seconds > 0 or (old_seconds == 0 and old_nanos > 0) then
      local seconds, nanos = moment(ARGV[at])
      newer = seconds > old_seconds or (seconds == old_seconds and nanos > old_nanos)
    end
  end
  if newer then
    for j = 0, width - 1 do fields[2 * j + 2] = ARGV[at + j] end
    redis.call('HSET', KEYS[i], unpack(fields))
    if life > 0 then redis.call('EXPIRE', KEYS[i], life) end
  end
  at = at + width
end
"""


class EncodedRows(msgspec.Struct, frozen=True):
    """Rows of one feature view in the bytes that stores keep; each column has one entry a row."""

    keys: list[bytes]
    """Serialized entity keys."""
    moments: np.ndarray
    """Event times, int64, microseconds since 1970."""
    created: np.ndarray | None
    """When the rows were created, likewise; numpy's "not a time" where null. None: the source does not tell."""
    values: Mapping[str, list[bytes]]
    """Feature → serialized Values."""
    texts: Callable[[], Mapping[str, list[str | None]]]
    """Feature → what SQL stores keep as text beside them."""


FeastRows = Sequence[tuple[Any, dict[str, Any], datetime, datetime | None]]


class Writer(Protocol):
    """Writes rows of one feature view to one online store."""

    def matches_feast(self, rows: EncodedRows, feasts: FeastRows) -> bool:
        """Whether this writer would leave these rows in the store as Feast's own class does. Writes nothing there."""

    def write(self, rows: EncodedRows) -> None:
        """Write the rows; what Feast's class would keep of older ones is kept."""

    def finish(self) -> None:
        """Make what was written visible to others; called once, also after an error."""


class RedisWriter:
    """Hashes of one feature view's rows, by a server-side script that compares and sets."""

    def __init__(self, config: RepoConfig, view: FeatureView, store: RedisOnlineStore) -> None:
        """Connects with the first row."""
        self._config = config
        self._view = view
        self._store = store
        name = _versioned_fv_name(view, config)
        self._features = [feature.name for feature in view.features]
        self._fields = [f"_ts:{name}".encode(), *(_mmh3(f"{name}:{feature}") for feature in self._features)]
        self._project = config.project.encode()

    def matches_feast(self, rows: EncodedRows, feasts: FeastRows) -> bool:
        """See `Writer`."""
        recorder = _RecordingRedis()
        store = RedisOnlineStore()
        store._client = recorder  # type: ignore[assignment]
        store.online_write_batch(self._config, self._view, list(feasts), None)
        ours = {key: dict(zip(self._fields, fields, strict=True)) for key, *fields in self._rows_of(rows, slice(None))}
        return ours == recorder.hashes

    def write(self, rows: EncodedRows) -> None:
        """See `Writer`.

        Raises:
            redis.RedisError: no usable answer. Rows before this one may have been written.
        """
        options = self._config.online_store
        client: Redis = self._store._get_client(options)
        script = client.register_script(SCRIPT)
        head = [options.key_ttl_seconds or 0, int(options.skip_dedup), len(self._fields), *self._fields]
        step = max(1, min(ROWS_PER_CALL, VALUES_PER_CALL // len(self._fields)))
        for start in range(0, len(rows.keys), step):
            keys, *columns = zip(*self._rows_of(rows, slice(start, start + step)), strict=True)
            script(keys=keys, args=[*head, *chain.from_iterable(zip(*columns, strict=True))])

    def finish(self) -> None:
        """Nothing to do: each call was seen at once."""

    def _rows_of(self, rows: EncodedRows, part: slice) -> Iterator[tuple[bytes, ...]]:
        keys = [key + self._project for key in rows.keys[part]]
        return zip(
            keys,
            encode_timestamps(rows.moments[part]),
            *(rows.values[name][part] for name in self._features),
            strict=True,
        )


class _RecordingRedis:
    """Stands in for a Redis that holds nothing, and keeps what would be written to it."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._asked = 0

    def pipeline(self, transaction: bool) -> "_RecordingRedis":  # noqa: ARG002 - Feast calls it by this name
        return self

    def __enter__(self) -> "_RecordingRedis":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hmget(self, *_: bytes | str) -> None:
        self._asked += 1

    def hset(self, key: bytes, mapping: dict[Any, bytes]) -> None:
        fields = {name.encode() if isinstance(name, str) else name: value for name, value in mapping.items()}
        self.hashes.setdefault(key, {}).update(fields)

    def expire(self, **_: Any) -> None:
        pass

    def execute(self) -> list[list[None]]:
        asked, self._asked = self._asked, 0
        return [[None]] * asked


class SqliteWriter:
    """Rows of one feature view's table. Readers wait while it is written, so a transaction does not last long."""

    def __init__(self, config: RepoConfig, view: FeatureView, store: SqliteOnlineStore) -> None:
        """Opens the file with the first row."""
        self._config = config
        self._view = view
        self._store = store
        self._table = _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
        self._features = [feature.name for feature in view.features]
        self._began: float | None = None

    def matches_feast(self, rows: EncodedRows, feasts: FeastRows) -> bool:
        """See `Writer`."""
        found = (
            self._store._get_conn(self._config)
            .execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (self._table,))
            .fetchone()
        )
        if found is None:
            return False  # not applied: Feast's own code says so
        contents = []
        for write in (self._write_as_feast, self._insert):
            connection = sqlite3.connect(":memory:")
            try:
                connection.execute(found[0])
                write(connection, feasts if write == self._write_as_feast else rows)  # type: ignore[arg-type]
                order = f"SELECT * FROM {_quote_id(self._table)} ORDER BY entity_key, feature_name"  # noqa: S608
                contents.append(connection.execute(order).fetchall())
            finally:
                connection.close()
        return contents[0] == contents[1]

    def write(self, rows: EncodedRows) -> None:
        """See `Writer`.

        Raises:
            sqlite3.Error: the file is locked, full or gone. Rows before these may have been written.
        """
        connection = self._store._get_conn(self._config)
        self._began = self._began or time.monotonic()
        self._insert(connection, rows)
        if time.monotonic() - self._began > TRANSACTION_S:
            connection.commit()
            self._began = None

    def finish(self) -> None:
        """See `Writer`."""
        if self._began is not None:
            self._store._get_conn(self._config).commit()
            self._began = None

    def _write_as_feast(self, connection: sqlite3.Connection, rows: FeastRows) -> None:
        store = SqliteOnlineStore()
        store._conn = connection
        store.online_write_batch(self._config, self._view, list(rows), None)

    def _insert(self, connection: sqlite3.Connection, rows: EncodedRows) -> None:
        moments = _stored_times(rows.moments)
        created = repeat(None) if rows.created is None else _stored_times(rows.created)
        texts = rows.texts()
        by_feature = [
            zip(rows.keys, repeat(name), rows.values[name], texts[name], moments, created, strict=False)
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
    """Times as Feast's SQLite adapter keeps them: seconds, of the UTC clock read as local time."""
    moments, places = np.unique(microseconds.astype("datetime64[us]"), return_inverse=True)
    stored = [None if moment is None else adapt_datetime_epoch(moment) for moment in moments.astype(object)]
    return np.array(stored, object)[places].tolist()  # type: ignore[no-any-return]


def writer_for(config: RepoConfig, view: FeatureView, store: OnlineStore) -> Writer | None:
    """What writes this view's rows to this store; None where only Feast's own class does."""
    options: Any = config.online_store
    if config.entity_key_serialization_version != 3 or not 0 < len(view.features) <= MOST_FEATURES:
        return None
    # Not of a class that somebody made of these: it may write otherwise.
    if type(store) is RedisOnlineStore:
        return RedisWriter(config, view, store) if options.redis_type is not RedisType.redis_cluster else None
    if type(store) is SqliteOnlineStore and not (options.vector_enabled or options.enable_openai_compatible_store):
        return SqliteWriter(config, view, store)
    return None
