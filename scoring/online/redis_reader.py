"""Reads many entities of Feast's Redis online store in one round trip.

`RedisReader` sends the commands for all entities of a request, or of many requests, at once, over redis-py's
connections. redis-py's own pipeline packs and dispatches each command in Python, which takes seven times as long; a
server-side script costs Redis twice the time (docs/adr/007).
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.redis import RedisClient, RedisOnlineStore, RedisType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis import RedisError
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoring.errors import READING, FeatureStoreError, UnusableFeature
from scoring.feast_plugins.entity_keys import SERIALIZATION_VERSION, entity_keys
from scoring.feast_plugins.join_keys import Keys
from scoring.feast_plugins.value_decoder import decode_moments, decode_values
from scoring.features.model_features import Feature
from scoring.online.reading import StoreRead, ViewColumns

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

# Sent before the first reply is read: Redis keeps what is not read yet in its memory.
KEYS_AT_ONCE = 2000
# Packed, sent and decoded at a time: Redis works on the first while the next are packed, and on the last while the
# first are decoded.
KEYS_PER_PIECE = 400
RESP2 = 2
"""The protocol in which a reply is all that a server sends."""
NO_REDIS = "what its address answers is not what a Redis answers: look at what listens there"


class Group(msgspec.Struct, frozen=True):
    """Feature views of the same entity: their features stand in one hash, and are read with one command."""

    keys: Keys
    views: tuple[ViewColumns, ...]

    @property
    def features(self) -> tuple[Feature, ...]:
        """All features to read from each hash."""
        return tuple(feature for view in self.views for feature in view.features)

    @property
    def fields(self) -> tuple[bytes, ...]:
        """The hash's fields to read: each view's event timestamp, then the features."""
        moments = (f"_ts:{view.view.name}".encode() for view in self.views)
        features = (_mmh3(f"{view.view.name}:{feature.name}") for view in self.views for feature in view.features)
        return (*moments, *features)


class RedisReader:
    """A `StoreReader`: one round trip a group of views, and KEYS_AT_ONCE entities."""

    store_errors: tuple[type[Exception], ...] = (RedisError, OSError)

    def __init__(self, client: "Redis", project: str, groups: Sequence[Group]) -> None:
        """Args: a client, Feast's project, and what to read."""
        self._pool = client.connection_pool
        self._project = project.encode()
        self._groups = [(group, ReadHashes(group.fields), group.features) for group in groups]

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """See `StoreReader.read`."""
        written_s: dict[str, np.ndarray] = {}
        columns: dict[str, pa.Array] = {}
        for group, command, features in self._groups:
            keys = entity_keys(group.keys, entity_rows, behind=self._project)
            parts: list[Decoded] = []
            for start in range(0, len(keys), KEYS_AT_ONCE):
                parts += self._ask(group, features, command, keys[start : start + KEYS_AT_ONCE])
            for place, view in enumerate(group.views):
                moments = [part.written_s[place] for part in parts]
                written_s[view.name] = moments[0] if len(moments) == 1 else np.concatenate(moments)
            for place, feature in enumerate(features):
                arrays = [part.columns[place] for part in parts]
                columns[feature.column] = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
        return StoreRead(written_s, columns)

    def _ask(
        self, group: Group, features: Sequence[Feature], command: "ReadHashes", keys: Sequence[bytes]
    ) -> "list[Decoded]":
        pieces = [keys[start : start + KEYS_PER_PIECE] for start in range(0, len(keys), KEYS_PER_PIECE)]
        connection = self._pool.get_connection()
        failed: Exception | None = None

        def ask() -> list[Decoded]:
            nonlocal failed
            failed, decoded = None, []
            connection.send_packed_command(map(command.packed, pieces))  # type: ignore[no-untyped-call]
            give_up_at = math.inf if connection.socket_timeout is None else time.monotonic() + connection.socket_timeout
            for piece in pieces:
                replies = _read_replies(connection, len(piece), give_up_at)
                if failed is None:  # else the rest is read only because it is on its way
                    try:
                        check_replies(replies, command.width)
                        decoded.append(decode(group, features, replies))
                    except (RedisConnectionError, FeatureStoreError):
                        raise
                    except Exception as error:  # of an entity; the connection has nothing to do with it
                        failed = error
            return decoded

        try:
            decoded = connection.retry.call_with_retry(ask, lambda _: connection.disconnect())  # type: ignore[no-untyped-call]
        except BaseException:  # some of the replies may be on their way, or belong to another command
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            self._pool.release(connection)
        if isinstance(failed, RedisError) and "WRONGTYPE" in str(failed):
            # An entity's key holds something else than a hash: the store has not failed.
            raise UnusableFeature(READING, failed) from failed
        if failed is not None:
            raise failed
        return decoded


class Decoded(NamedTuple):
    """What some hashes hold."""

    written_s: list[np.ndarray]
    """One a view of the group; see `StoreRead`."""
    columns: list[pa.Array]
    """One a column of the group."""


def decode(group: Group, features: Sequence[Feature], hashes: Sequence[Sequence[bytes | None]]) -> Decoded:
    """The values of some hashes, each of which has the group's fields.

    Raises:
        FeatureStoreError: one is of a kind that no Redis holds.
        UnusableFeature, google.protobuf.message.DecodeError: one is not what the feature is declared to be.
    """
    by_field = list(zip(*hashes, strict=True))
    views = len(group.views)
    try:
        return Decoded(
            [decode_moments(values) for values in by_field[:views]],
            [decode_values(values, feature.dtype) for values, feature in zip(by_field[views:], features, strict=True)],
        )
    except Exception:
        # Looked at only now: nearly always every value is one that a Redis can hold.
        if {kind for values in by_field for kind in map(type, values)} <= {bytes, type(None)}:
            raise
        raise FeatureStoreError(READING, NO_REDIS) from None


def _read_replies(connection: Any, count: int, give_up_at: float) -> list[Any]:
    """The next replies of a connection. One may be an error that Redis answered.

    Raises:
        redis.TimeoutError: they are not there at `give_up_at`, by the monotonic clock. The connection's own limit
            begins anew with each byte, so that one that dribbles would be kept, and taken again and again.
    """
    parser = connection._parser
    if not isinstance(parser, _HiredisParser) or connection.protocol != RESP2:  # others bring messages between replies
        return [parser.read_response() for _ in range(count)]
    # The connection's read_response, and that of its parser, take several times as long as hiredis for a reply itself.
    replies: list[Any] = []
    while True:
        replies += itertools.islice(iter(parser._reader.gets, NOT_ENOUGH_DATA), count - len(replies))
        if len(replies) == count:
            break
        if time.monotonic() > give_up_at:
            raise RedisTimeoutError("its answer did not arrive in time")
        parser.read_from_socket()  # type: ignore[no-untyped-call]
    return replies


def check_replies(replies: Sequence[Any], width: int) -> None:
    """Nothing, if each is a hash's fields.

    Raises:
        redis.ConnectionError: one is an error of the connection (Redis is loading its data, or has too many clients).
        FeatureStoreError: one is neither an error nor a hash's fields.
        redis.RedisError: one is another error.
    """
    if set(map(type, replies)) == {list} and set(map(len, replies)) == {width}:
        return
    errors = [reply for reply in replies if isinstance(reply, RedisError)]
    for error in errors:
        if isinstance(error, RedisConnectionError):
            raise error
    if any(not isinstance(reply, RedisError) and (type(reply) is not list or len(reply) != width) for reply in replies):
        raise FeatureStoreError(READING, NO_REDIS)
    raise errors[0]


class ReadHashes:
    """The command that reads the same fields of some hashes: HMGET, as the Redis protocol has it on the wire."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        """Args: which fields."""
        self.width = len(fields)
        self._head = b"*%d\r\n%b" % (2 + len(fields), _argument(b"HMGET"))
        self._tail = b"".join(map(_argument, fields))

    def packed(self, keys: Sequence[bytes]) -> bytes:
        """One command for each of the keys, at least one, in their order."""
        length = len(keys[0])
        if set(map(len, keys)) == {length}:  # as all have whose join keys are numbers
            head, tail = b"%b$%d\r\n" % (self._head, length), b"\r\n" + self._tail
            return head + (tail + head).join(keys) + tail
        return self._head + (self._tail + self._head).join(map(_argument, keys)) + self._tail


def _argument(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def redis_reader(store: "FeatureStore", views: Sequence[ViewColumns]) -> RedisReader | None:
    """A reader of the store's Redis; None for a cluster, sentinels or the GLIDE client, and for an unknown key layout.

    Raises:
        FeatureStoreError: its connection string is not one.
    """
    online = store.config.online_store
    plain = online.redis_type is RedisType.redis and online.client is RedisClient.redis
    if not plain or not _project_stands_behind(store.project):
        return None
    by_keys: dict[Keys, list[ViewColumns]] = {}
    for view in views:
        by_keys.setdefault(view.keys, []).append(view)
    groups = [Group(keys, tuple(each)) for keys, each in by_keys.items()]
    try:
        client = RedisOnlineStore()._get_client(online)
    except Exception as error:  # whatever a string leads to that Feast or redis-py does not take
        raise FeatureStoreError("reading the connection string of the online store", error) from error
    return RedisReader(client, store.project, groups)


def _project_stands_behind(project: str) -> bool:
    entity = EntityKey(join_keys=["a"], entity_values=[Value(int64_val=1)])
    expected = serialize_entity_key(entity, SERIALIZATION_VERSION) + project.encode()
    return bool(_redis_key(project, entity, SERIALIZATION_VERSION) == expected)
