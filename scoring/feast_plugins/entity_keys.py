"""Serializes the entity keys of Feast's online stores (version 3) for many entities at once."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value, ValueType

from scoring.feast_plugins.join_keys import NO_ENTITY, JoinKey, Keys

SERIALIZATION_VERSION = 3


def entity_keys(keys: Keys, entity_rows: Mapping[str, Sequence[Any]], behind: bytes = b"") -> list[bytes]:
    """Return the serialized keys of entity rows, in their order.

    Args:
        keys: the join keys of the entity.
        entity_rows: request's join key → its values, of the declared types. A view without entities has the same key
            in each row.
        behind: suffix of each key.
    """
    head = struct.pack("<I", len(keys))
    for name, _ in keys:
        encoded = name.encode()
        head += struct.pack("<II", ValueType.STRING, len(encoded)) + encoded
    if len(keys) == 1:
        ((_, key),) = keys
        if key.name == NO_ENTITY:
            return _serialized(key, [""], head, behind) * len(next(iter(entity_rows.values())))
        return _serialized(key, entity_rows[key.name], head, behind)
    parts = [_serialized(key, entity_rows[key.name]) for _, key in keys]
    return [b"".join((head, *values, behind)) for values in zip(*parts, strict=True)]


def match_feast(keys: Keys) -> bool:
    """Return whether Feast serializes keys of these types as `entity_keys` does, tested with two entities."""
    samples: dict[str, list[Any]] = {
        key.name: ["", "" if key.name == NO_ENTITY else "aé-1"] if key.dtype == "string" else [0, -(2**31)]
        for _, key in keys
    }
    theirs = []
    for row in range(2):
        values = [Value(**{f"{key.dtype}_val": samples[key.name][row]}) for _, key in keys]
        entity = EntityKey(join_keys=[name for name, _ in keys], entity_values=values)
        theirs.append(serialize_entity_key(entity, SERIALIZATION_VERSION))
    return entity_keys(keys, samples) == theirs


def _serialized(key: JoinKey, values: Sequence[Any], before: bytes = b"", behind: bytes = b"") -> list[bytes]:
    if key.dtype == "string":
        encoded = [value.encode() for value in values]
        head = before + struct.pack("<I", ValueType.STRING)
        return [b"".join((head, struct.pack("<I", len(value)), value, behind)) for value in encoded]
    kind, letter, size = {"int32": (ValueType.INT32, "i", 4), "int64": (ValueType.INT64, "q", 8)}[key.dtype]
    head = before + struct.pack("<II", kind, size)
    pack = struct.Struct(f"<{len(head)}s{letter}{len(behind)}s").pack
    return [pack(head, value, behind) for value in values]
