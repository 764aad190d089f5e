"""Writes rows to Feast's Redis and SQLite online stores in bulk, with the same result as Feast's own code.

A writer implements a store's layout. Its `matches_feast` compares the result with that of Feast's own class.
"""

import contextlib
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

from scoring.feast_plugins.entity_keys import SERIALIZATION_VERSION
from scoring.feast_plugins.value_encoder import UnsupportedEncoding, encode_timestamps

if TYPE_CHECKING:
    from redis import Redis

# Redis blocks during a call; writing this many rows takes about 2 ms.
ROWS_PER_CALL = 500
# Limits of one Redis command and of Lua's unpack.
VALUES_PER_CALL, MAX_FEATURES = 200_000, 2000
# A SQLite transaction ends after this time. Each transaction waits for the disk several times. It also blocks readers:
# the API waits for a second (`scoring.online.sqlite_reader`).
TRANSACTION_S = 0.3

# For each key, the script sets the row's fields unless the hash has a row that is as new or newer. In any case it
# renews the key's time to live, as Feast does for a row that it writes (0.67). Feast also compares times in nanoseconds
# and ignores times up to 1970. But Feast reads all times before it writes, so that an older row may overwrite that of
# another writer, while a script is atomic. The script calls only Feast's commands (HMGET, HSET, EXPIRE), so that a
# Redis user needs no permissions other than those for Feast and for running scripts.
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
local function timestamp(bytes)
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
  local stored = not always and redis.call('HMGET', KEYS[i], ARGV[4])[1]
  if stored then
    local old_seconds, old_nanos = timestamp(stored)
    if old_seconds > 0 or (old_seconds == 0 and old_nanos > 0) then
      local seconds, nanos = timestamp(ARGV[at])
      newer = seconds > old_seconds or (seconds == old_seconds and nanos > old_nanos)
    end
  end
  if newer then
    for j = 0, width - 1 do fields[2 * j + 2] = ARGV[at + j] end
    redis.call('HSET', KEYS[i], unpack(fields))
  end
  if life > 0 then redis.call('EXPIRE', KEYS[i], life) end
  at = at + width
end
"""


class EncodedRows(msgspec.Struct, frozen=True):
    """Rows of one feature view, encoded as stored; each column has one entry per row."""

    keys: list[bytes]
    """Serialized entity keys."""
    event_us: np.ndarray
    """Event times, int64, microseconds since 1970."""
    created_us: np.ndarray | None
    """Creation times, likewise; NaT for null. None if the source has no such column."""
    values: Mapping[str, list[bytes]]
    """Feature → serialized Values."""
    texts: Callable[[], Mapping[str, list[str | None]]]
    """Feature → the text that SQL stores keep with each Value."""


FeastRows = Sequence[tuple[Any, dict[str, Any], datetime, datetime | None]]


class Writer(Protocol):
    """Writes rows of one feature view to one online store."""

    def matches_feast(self, rows: EncodedRows, feasts: FeastRows) -> bool:
        """Return whether this writer would store these rows exactly as Feast's own class does. Write nothing."""

    def write(self, rows: EncodedRows) -> None:
        """Write the rows. Older rows do not replace rows that Feast's class would keep.

        Raises:
            UnsupportedEncoding: Feast's own class must write these rows.
            Exception: a client or file error. Earlier rows may have been written.
        """

    def finish(self) -> None:
        """Make the written rows visible to others. Call it once, also after an error."""


class RedisWriter:
    """Writes hashes with a server-side script that compares and sets."""

    def __init__(self, config: RepoConfig, view: FeatureView, store: RedisOnlineStore) -> None:
        """Connect lazily at the first row."""
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
        """See `Writer`."""
        options = self._config.online_store
        from redis.exceptions import NoPermissionError

        client: Redis = self._store._get_client(options)
        script = client.register_script(SCRIPT)
        head = [options.key_ttl_seconds or 0, int(options.skip_dedup), len(self._fields), *self._fields]
        step = max(1, min(ROWS_PER_CALL, VALUES_PER_CALL // len(self._fields)))
        for start in range(0, len(rows.keys), step):
            keys, *columns = zip(*self._rows_of(rows, slice(start, start + step)), strict=True)
            try:
                script(keys=keys, args=[*head, *chain.from_iterable(zip(*columns, strict=True))])
            except NoPermissionError:
                raise UnsupportedEncoding("this user of Redis may not run scripts") from None

    def finish(self) -> None:
        """Do nothing, because each call is visible at once."""

    def _rows_of(self, rows: EncodedRows, part: slice) -> Iterator[tuple[bytes, ...]]:
        keys = [key + self._project for key in rows.keys[part]]
        values = (rows.values[name][part] for name in self._features)
        return zip(keys, encode_timestamps(rows.event_us[part]), *values, strict=True)


class _RecordingRedis:
    """Acts as an empty Redis, and records the writes."""

    def __init__(self) -> None:
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._reads = 0

    def pipeline(self, transaction: bool) -> "_RecordingRedis":  # noqa: ARG002 - Feast calls it by this name
        return self

    def __enter__(self) -> "_RecordingRedis":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hmget(self, *_: bytes | str) -> None:
        self._reads += 1

    def hset(self, key: bytes, mapping: dict[Any, bytes]) -> None:
        fields = {name.encode() if isinstance(name, str) else name: value for name, value in mapping.items()}
        self.hashes.setdefault(key, {}).update(fields)

    def expire(self, **_: Any) -> None:
        pass

    def execute(self) -> list[list[None]]:
        reads, self._reads = self._reads, 0
        return [[None]] * reads


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


def writer_for(config: RepoConfig, view: FeatureView, store: OnlineStore) -> Writer | None:
    """Return the writer of this view's rows for this store; None if only Feast's own class can write them."""
    options: Any = config.online_store
    if config.entity_key_serialization_version != SERIALIZATION_VERSION or not 0 < len(view.features) <= MAX_FEATURES:
        return None
    # Check for exactly these classes, because a subclass may write differently.
    if type(store) is RedisOnlineStore:
        return RedisWriter(config, view, store) if options.redis_type is not RedisType.redis_cluster else None
    if type(store) is SqliteOnlineStore and not (options.vector_enabled or options.enable_openai_compatible_store):
        return SqliteWriter(config, view, store)
    return None
