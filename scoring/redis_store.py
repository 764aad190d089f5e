"""A Feast online store on Redis that reads many entities in one round trip.

Name it in feature_store.yaml (Feast's own extension point); it takes what Feast's redis store takes:

    online_store:
      type: scoring.redis_store.BulkRedisOnlineStore
      connection_string: localhost:6379

It writes and reads exactly what Feast's own redis store does, so that either may read what the other wrote. On top of
that, `BulkReader` looks up all entities of a request, or of many requests, with one server-side script: one command,
one reply, parsed in C. What it knows of the layout is held against Feast's own functions when it is made; if they
differ, or a service needs what it can't do, there is no reader, and Feast's own way serves.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value, ValueType
from redis import RedisError

from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.features import JoinKey, ModelFeatures
from scoring.online import READING, StoreRead
from scoring.stored_values import VALUE_FIELDS, decode_moments, decode_values

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

# All entities' hashes in one reply: fields of the first, fields of the second, and so on; nil where there is none.
SCRIPT = """
local reply = {}
local at = 0
for i = 1, #KEYS do
  local values = redis.call('HMGET', KEYS[i], unpack(ARGV))
  for j = 1, #ARGV do
    reply[at + j] = values[j]
  end
  at = at + #ARGV
end
return reply
"""
# What Lua can unpack and Redis takes as keys of one call without blocking others for long.
KEYS_A_CALL = 2000


class BulkRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """What feature_store.yaml may say under online_store: as for Feast's redis store."""

    type: str = "scoring.redis_store.BulkRedisOnlineStore"  # type: ignore[assignment]  # Feast fixes its own name


class BulkRedisOnlineStore(RedisOnlineStore):
    """See the module."""


class Column(msgspec.Struct, frozen=True):
    """One feature as Redis keeps it: which field of the entity's hash, and how its bytes become an array."""

    name: str
    """`view__feature`."""
    field: bytes
    dtype: pa.DataType


class Group(msgspec.Struct, frozen=True):
    """Feature views of the same entity: their features stand in one hash, and are read with one command."""

    keys: tuple[tuple[str, JoinKey], ...]
    """(name of the view's own join key, the request's join key), in the order of the serialized key."""
    moments: tuple[tuple[str, bytes], ...]
    """(view, the field that holds its row's event timestamp)."""
    columns: tuple[Column, ...]

    @property
    def fields(self) -> tuple[bytes, ...]:
        """All fields to read of each hash."""
        return (*(field for _, field in self.moments), *(column.field for column in self.columns))


class BulkReader:
    """Reads what one model needs of any number of entities. Threads may share it."""

    def __init__(self, client: "Redis", project: str, groups: Sequence[Group]) -> None:
        """Args: a connected client, Feast's project, and what to read."""
        self._client = client
        self._script = client.register_script(SCRIPT)
        self._project = project.encode()
        self._groups = groups

    def read(self, entity_rows: Mapping[str, Sequence[Any]], rows: int) -> StoreRead:
        """One round trip a group of views, and KEYS_A_CALL entities.

        Args:
            entity_rows: request's join key → its values (rows,), of the declared types.
            rows: how many.

        Raises:
            FeatureStoreError: Redis gave no usable answer.
            UnusableFeature: what it holds is not what Feast writes.
        """
        try:
            return self._read(entity_rows, rows)
        except (RedisError, OSError) as error:
            raise FeatureStoreError(READING, error) from error
        except Exception as error:  # whatever the bytes of an entity lead to
            raise UnusableFeature(READING, error) from error

    def _read(self, entity_rows: Mapping[str, Sequence[Any]], rows: int) -> StoreRead:
        written_s: dict[str, np.ndarray] = {}
        columns: dict[str, pa.Array] = {}
        for group in self._groups:
            keys = hash_keys(group.keys, entity_rows, self._project)
            width = len(group.fields)
            reply: list[bytes | None] = []
            for start in range(0, rows, KEYS_A_CALL):
                reply += self._script(keys=keys[start : start + KEYS_A_CALL], args=group.fields)
            for place, (view, _) in enumerate(group.moments):
                written_s[view] = decode_moments(reply[place::width])
            for place, column in enumerate(group.columns, len(group.moments)):
                columns[column.name] = decode_values(reply[place::width], column.dtype)
        return StoreRead(written_s, columns)


def bulk_reader(store: "FeatureStore", features: ModelFeatures) -> BulkReader | None:
    """A reader of what `features` needs, or None where Feast's own way must serve.

    That is: another online store than `BulkRedisOnlineStore`, a Redis cluster or sentinel, on-demand views, versioned
    views, a type other than numbers, bool and text, or a layout that is not the one that this module knows.
    """
    config = store.config
    online = config.online_store
    if not isinstance(online, BulkRedisOnlineStoreConfig) or online.redis_type is not RedisType.redis:
        return None
    if config.registry.enable_online_feature_view_versioning or config.entity_key_serialization_version != 3:
        return None
    groups = _groups(store, features)
    if groups is None or not all(_layout_is_known(group, store.project) for group in groups):
        return None
    client = BulkRedisOnlineStore()._get_client(online)
    return BulkReader(client, store.project, groups)


def hash_keys(
    keys: Sequence[tuple[str, JoinKey]], entity_rows: Mapping[str, Sequence[Any]], project: bytes
) -> list[bytes]:
    """Redis keys of entity rows, as Feast's serialize_entity_key (version 3) makes them, with the project behind."""
    head = struct.pack("<I", len(keys))
    for name, _ in keys:
        encoded = name.encode()
        head += struct.pack("<II", ValueType.STRING, len(encoded)) + encoded
    parts = [_serialized(key, entity_rows[key.name]) for _, key in keys]
    if len(parts) == 1:
        return [head + value + project for value in parts[0]]
    return [head + b"".join(values) + project for values in zip(*parts, strict=True)]


def _serialized(key: JoinKey, values: Sequence[Any]) -> list[bytes]:
    if key.dtype == "string":
        encoded = [value.encode() for value in values]
        return [struct.pack("<II", ValueType.STRING, len(value)) + value for value in encoded]
    kind, form, size = {"int32": (ValueType.INT32, "<IIi", 4), "int64": (ValueType.INT64, "<IIq", 8)}[key.dtype]
    pack = struct.Struct(form).pack
    return [pack(kind, size, value) for value in values]


def _groups(store: "FeatureStore", features: ModelFeatures) -> list[Group] | None:
    service = store.registry.get_feature_service(features.service, store.project, allow_cache=True)
    projections = {(each.name_alias or each.name): each for each in service.feature_view_projections}
    request_keys = {key.name: key for key in features.join_keys}
    by_keys: dict[tuple[tuple[str, JoinKey], ...], list[str]] = {}
    for view in features.views:
        if view.name not in projections:
            return None
        projection = projections[view.name]
        own: Any = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        names = sorted(column.name for column in own.entity_columns)
        keys = tuple((name, request_keys[projection.join_key_map.get(name, name)]) for name in names)
        by_keys.setdefault(keys, []).append(view.name)
    groups = []
    for keys, names in by_keys.items():
        columns = []
        for feature in features.features:
            if feature.views[0] not in names:
                continue
            prefix, _, name = feature.column.partition("__")
            if feature.views != (prefix,) or feature.dtype not in VALUE_FIELDS:
                return None
            columns.append(Column(feature.column, _mmh3(f"{projections[prefix].name}:{name}"), feature.dtype))
        moments = tuple((name, f"_ts:{projections[name].name}".encode()) for name in names)
        groups.append(Group(keys, moments, tuple(columns)))
    return groups


def _layout_is_known(group: Group, project: str) -> bool:
    samples: dict[str, list[Any]] = {
        key.name: ["", "aé-1"] if key.dtype == "string" else [0, -(2**31)] for _, key in group.keys
    }
    ours = hash_keys(group.keys, samples, project.encode())
    theirs = []
    for row in range(2):
        values = [Value(**{f"{key.dtype}_val": samples[key.name][row]}) for _, key in group.keys]
        entity = EntityKey(join_keys=[name for name, _ in group.keys], entity_values=values)
        theirs.append(_redis_key(project, entity, 3))
        if not theirs[-1].startswith(serialize_entity_key(entity, 3)):
            return False
    return ours == theirs
