"""Implements `Writer` of `online_writers.py` for Feast's Redis online store, with a script that the server runs."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from feast import FeatureView
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore, _versioned_fv_name
from feast.repo_config import RepoConfig

from scoring.feast_plugins.encoded_rows import EncodedRows, FeastRows
from scoring.feast_plugins.value_encoder import UnsupportedEncoding, encode_timestamps

if TYPE_CHECKING:
    from redis import Redis

# Redis blocks during a call; writing this many rows takes about 2 ms.
ROWS_PER_CALL = 500
# Limits of one Redis command and of Lua's unpack.
VALUES_PER_CALL, MAX_FEATURES = 200_000, 2000

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
