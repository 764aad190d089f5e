"""Reads many entities from Feast's Redis online store with pipelined commands.

`RedisReader` sends one command per distinct entity of each kind, up to 2000 before it reads replies, over redis-py's
connections. redis-py's own pipeline packs and dispatches each command in Python, which takes seven times as
long; a server-side script takes Redis twice the time (docs/adr/007).
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from scoring.feast_plugins.value_decoder import decode_timestamps, decode_values
from scoring.online.reading import StoreRead, ViewColumns, distinct_entities

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

# Maximum number of keys packed, sent and decoded together: Redis processes the first piece while the next one is
# packed, and the last piece while the first one is decoded.
KEYS_PER_PIECE = 400
# Maximum number of pieces sent before the first reply is read, because Redis buffers unread replies.
PIECES_AT_ONCE = 5
RESP2 = 2
"""The protocol version in which a server sends only replies."""


class NotRedis(FeatureStoreError):
    """A server other than Redis responded."""

    def __init__(self) -> None:
        super().__init__(READING, "the server at this address is not Redis: check the connection string")


class _Hashes:
    """The hashes of one kind of entity. One command per entity reads all views that share the join keys."""

    def __init__(self, keys: Keys, views: Sequence[ViewColumns]) -> None:
        self.keys = keys
        self.views = tuple(views)
        self.features = [feature for view in views for feature in view.features]
        names = [f"{view.view.name}:{feature.name}" for view in views for feature in view.features]
        self.command = HmgetCommand([*(f"_ts:{view.view.name}".encode() for view in views), *map(_mmh3, names)])

    def decode(self, replies: Sequence[Any]) -> StoreRead:
        """Decode the replies for some hashes.

        Raises:
            redis.ConnectionError, redis.RedisError, NotRedis, UnusableFeature: see `check_replies`.
            UnusableFeature, google.protobuf.message.DecodeError: a value does not have its feature's declared type.
        """
        check_replies(replies, self.command.width)
        fields = list(zip(*replies, strict=True))
        timestamps, values = fields[: len(self.views)], fields[len(self.views) :]
        try:
            return StoreRead(
                {view.name: decode_timestamps(each) for view, each in zip(self.views, timestamps, strict=True)},
                {
                    feature.column: decode_values(each, feature.dtype)
                    for feature, each in zip(self.features, values, strict=True)
                },
            )
        except Exception:
            # Check this only after an error, because nearly always every value has a type that Redis can return.
            if {kind for each in fields for kind in map(type, each)} <= {bytes, type(None)}:
                raise
            raise NotRedis from None

    def join(self, parts: Sequence[StoreRead]) -> StoreRead:
        """Return the features of all hashes of several parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return StoreRead(
            {view.name: np.concatenate([part.event_s[view.name] for part in parts]) for view in self.views},
            {
                feature.column: pa.concat_arrays([part.columns[feature.column] for part in parts])
                for feature in self.features
            },
        )


_Piece = tuple[_Hashes, Sequence[bytes]]


class RedisReader:
    """A `StoreReader` with one round trip per PIECES_AT_ONCE pieces of keys, of all kinds of entities."""

    store_errors = (RedisError, OSError)

    def __init__(self, client: "Redis", project: str, views: Sequence[ViewColumns]) -> None:
        """Store a client, the Feast project, and the features to read."""
        self._pool = client.connection_pool
        self._project = project.encode()
        by_keys: dict[Keys, list[ViewColumns]] = {}
        for view in views:
            by_keys.setdefault(view.keys, []).append(view)
        self._hashes = [_Hashes(keys, each) for keys, each in by_keys.items()]

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """See `StoreReader.read`."""
        pieces: list[_Piece] = []
        places_of: dict[_Hashes, np.ndarray | None] = {}
        for hashes in self._hashes:
            entities, places_of[hashes] = distinct_entities(hashes.keys, entity_rows)
            keys = entity_keys(hashes.keys, entities, behind=self._project)
            pieces += [(hashes, keys[start : start + KEYS_PER_PIECE]) for start in range(0, len(keys), KEYS_PER_PIECE)]
        decoded: list[StoreRead] = []
        for start in range(0, len(pieces), PIECES_AT_ONCE):
            decoded += self._fetch(pieces[start : start + PIECES_AT_ONCE])
        event_s: dict[str, np.ndarray] = {}
        columns: dict[str, pa.Array] = {}
        for hashes, places in places_of.items():
            read = hashes.join([part for (of, _), part in zip(pieces, decoded, strict=True) if of is hashes])
            if places is not None:
                read = read.take(places)
            event_s |= read.event_s
            columns |= read.columns
        return StoreRead(event_s, columns)

    def _fetch(self, pieces: Sequence[_Piece]) -> list[StoreRead]:
        connection = self._pool.get_connection()
        failed: Exception | None = None

        def exchange() -> list[StoreRead]:
            nonlocal failed
            failed, decoded = None, []
            connection.send_packed_command(hashes.command.packed(keys) for hashes, keys in pieces)  # type: ignore[no-untyped-call]
            give_up_at = math.inf if connection.socket_timeout is None else time.monotonic() + connection.socket_timeout
            for hashes, keys in pieces:
                replies = _read_replies(connection, len(keys), give_up_at)
                if failed is None:  # otherwise the remaining replies are read only to drain the connection
                    try:
                        decoded.append(hashes.decode(replies))
                    except (RedisConnectionError, NotRedis):
                        raise
                    except Exception as error:  # caused by one entity; the connection is usable
                        failed = error
            return decoded

        try:
            decoded = connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())  # type: ignore[no-untyped-call]
        except BaseException:  # unread replies may remain, or belong to another command
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            self._pool.release(connection)
        if failed is not None:
            raise failed
        return decoded


def _read_replies(connection: Any, count: int, give_up_at: float) -> list[Any]:
    """Read the next replies of a connection. A reply may be an error from Redis.

    Raises:
        redis.TimeoutError: they have not arrived at `give_up_at`, by the monotonic clock. The connection's own timeout
            restarts with each byte, so that a slow connection would be kept and used repeatedly.
    """
    parser = connection._parser
    if not isinstance(parser, _HiredisParser) or connection.protocol != RESP2:  # others send messages between replies
        return [parser.read_response() for _ in range(count)]
    # read_response of the connection and of its parser takes several times as long as hiredis does for a reply.
    replies: list[Any] = []
    while True:
        replies += itertools.islice(iter(parser._reader.gets, NOT_ENOUGH_DATA), count - len(replies))
        if len(replies) == count:
            break
        if time.monotonic() > give_up_at:
            raise RedisTimeoutError("its response did not arrive in time")
        parser.read_from_socket()  # type: ignore[no-untyped-call]
    return replies


def check_replies(replies: Sequence[Any], width: int) -> None:
    """Raise unless each reply is a hash's fields.

    Raises:
        redis.ConnectionError: a reply is a connection error (Redis is loading its data, or has too many clients).
        NotRedis: a reply is neither an error nor a hash's fields.
        UnusableFeature: the value at an entity's key is not a hash.
        redis.RedisError: a reply is another error.
    """
    if set(map(type, replies)) == {list} and set(map(len, replies)) == {width}:
        return
    errors = [reply for reply in replies if isinstance(reply, RedisError)]
    for error in errors:
        if isinstance(error, RedisConnectionError):
            raise error
    if any(not isinstance(reply, RedisError) and (type(reply) is not list or len(reply) != width) for reply in replies):
        raise NotRedis
    if "WRONGTYPE" in str(errors[0]):
        raise UnusableFeature(READING, errors[0])
    raise errors[0]


class HmgetCommand:
    """Packs HMGET commands for the same fields of many hashes as bytes of the Redis protocol."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        """Pack the fields, which are the same in each command."""
        self.width = len(fields)
        self._head = b"*%d\r\n%b" % (2 + len(fields), _argument(b"HMGET"))
        self._tail = b"".join(map(_argument, fields))

    def packed(self, keys: Sequence[bytes]) -> bytes:
        """Return one command per key, in order; there is at least one key."""
        length = len(keys[0])
        if set(map(len, keys)) == {length}:  # as with numeric join keys
            head, tail = b"%b$%d\r\n" % (self._head, length), b"\r\n" + self._tail
            return head + (tail + head).join(keys) + tail
        return self._head + (self._tail + self._head).join(map(_argument, keys)) + self._tail


def _argument(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def redis_reader(store: "FeatureStore", views: Sequence[ViewColumns]) -> RedisReader | None:
    """Return a reader of the store's Redis; None for a cluster, sentinels, the GLIDE client or an unknown key layout.

    Raises:
        FeatureStoreError: its connection string is not valid.
    """
    online = store.config.online_store
    plain = online.redis_type is RedisType.redis and online.client is RedisClient.redis
    if not plain or not _project_follows_key(store.project):
        return None
    try:
        client = RedisOnlineStore()._get_client(online)
    except Exception as error:  # Feast and redis-py raise various exceptions for an invalid string
        raise FeatureStoreError("reading the connection string of the online store", error) from error
    return RedisReader(client, store.project, views)


def _project_follows_key(project: str) -> bool:
    entity = EntityKey(join_keys=["a"], entity_values=[Value(int64_val=1)])
    expected = serialize_entity_key(entity, SERIALIZATION_VERSION) + project.encode()
    return bool(_redis_key(project, entity, SERIALIZATION_VERSION) == expected)
