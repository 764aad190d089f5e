"""Reads many entities from Feast's Redis online store in one round trip.

`RedisReader` sends the commands for all entities of a request, or of many requests, at once, over redis-py's
connections. redis-py's own pipeline packs and dispatches each command in Python, which takes seven times as long; a
server-side script costs Redis twice the time (docs/adr/007).
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
"""The protocol in which a server sends nothing but replies."""


class NotRedis(FeatureStoreError):
    """Something other than Redis answered."""

    def __init__(self) -> None:
        super().__init__(READING, "its address is answered by something other than Redis: check what listens there")


class _Hashes:
    """The hashes of one kind of entity: one command reads the features of all views that share the join keys."""

    def __init__(self, keys: Keys, views: Sequence[ViewColumns]) -> None:
        self.keys = keys
        self.views = tuple(views)
        self.features = [feature for view in views for feature in view.features]
        names = [f"{view.view.name}:{feature.name}" for view in views for feature in view.features]
        self.command = HmgetCommand([*(f"_ts:{view.view.name}".encode() for view in views), *map(_mmh3, names)])

    def decode(self, replies: Sequence[Any]) -> StoreRead:
        """The values of some hashes.

        Raises:
            redis.ConnectionError, redis.RedisError, NotRedis, UnusableFeature: see `check_replies`.
            UnusableFeature, google.protobuf.message.DecodeError: a value is not what its feature is declared to be.
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
            # Checked only now: nearly always every value is one that Redis can return.
            if {kind for each in fields for kind in map(type, each)} <= {bytes, type(None)}:
                raise
            raise NotRedis from None


class RedisReader:
    """A `StoreReader`: one round trip per kind of entity and KEYS_AT_ONCE entities."""

    store_errors = (RedisError, OSError)

    def __init__(self, client: "Redis", project: str, views: Sequence[ViewColumns]) -> None:
        """Args: a client, Feast's project, and what to read."""
        self._pool = client.connection_pool
        self._project = project.encode()
        by_keys: dict[Keys, list[ViewColumns]] = {}
        for view in views:
            by_keys.setdefault(view.keys, []).append(view)
        self._hashes = [_Hashes(keys, each) for keys, each in by_keys.items()]

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """See `StoreReader.read`."""
        event_s: dict[str, np.ndarray] = {}
        columns: dict[str, pa.Array] = {}
        for hashes in self._hashes:
            keys = entity_keys(hashes.keys, entity_rows, behind=self._project)
            parts: list[StoreRead] = []
            for start in range(0, len(keys), KEYS_AT_ONCE):
                parts += self._fetch(hashes, keys[start : start + KEYS_AT_ONCE])
            if len(parts) == 1:
                event_s |= parts[0].event_s
                columns |= parts[0].columns
                continue
            for view in hashes.views:
                event_s[view.name] = np.concatenate([part.event_s[view.name] for part in parts])
            for feature in hashes.features:
                columns[feature.column] = pa.concat_arrays([part.columns[feature.column] for part in parts])
        return StoreRead(event_s, columns)

    def _fetch(self, hashes: _Hashes, keys: Sequence[bytes]) -> list[StoreRead]:
        pieces = [keys[start : start + KEYS_PER_PIECE] for start in range(0, len(keys), KEYS_PER_PIECE)]
        connection = self._pool.get_connection()
        failed: Exception | None = None

        def exchange() -> list[StoreRead]:
            nonlocal failed
            failed, decoded = None, []
            connection.send_packed_command(map(hashes.command.packed, pieces))  # type: ignore[no-untyped-call]
            give_up_at = math.inf if connection.socket_timeout is None else time.monotonic() + connection.socket_timeout
            for piece in pieces:
                replies = _read_replies(connection, len(piece), give_up_at)
                if failed is None:  # else the rest is read only because it is on its way
                    try:
                        decoded.append(hashes.decode(replies))
                    except (RedisConnectionError, NotRedis):
                        raise
                    except Exception as error:  # of one entity; the connection is in order
                        failed = error
            return decoded

        try:
            decoded = connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())  # type: ignore[no-untyped-call]
        except BaseException:  # some replies may still be on their way, or belong to another command
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            self._pool.release(connection)
        if failed is not None:
            raise failed
        return decoded


def _read_replies(connection: Any, count: int, give_up_at: float) -> list[Any]:
    """The next replies of a connection. One may be an error that Redis answered.

    Raises:
        redis.TimeoutError: they have not arrived at `give_up_at`, by the monotonic clock. The connection's own limit
            starts anew with each byte, so a connection that dribbles would be kept and used again and again.
    """
    parser = connection._parser
    if not isinstance(parser, _HiredisParser) or connection.protocol != RESP2:  # others send messages between replies
        return [parser.read_response() for _ in range(count)]
    # The connection's read_response, and its parser's, take several times as long as hiredis takes for a reply.
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
    """Raise unless each reply is a hash's fields.

    Raises:
        redis.ConnectionError: one is an error of the connection (Redis is loading its data, or has too many clients).
        NotRedis: one is neither an error nor a hash's fields.
        UnusableFeature: the key of an entity holds something other than a hash.
        redis.RedisError: one is another error.
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
    """HMGET of the same fields for many hashes, in the bytes of the Redis protocol."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        """Args: which fields."""
        self.width = len(fields)
        self._head = b"*%d\r\n%b" % (2 + len(fields), _argument(b"HMGET"))
        self._tail = b"".join(map(_argument, fields))

    def packed(self, keys: Sequence[bytes]) -> bytes:
        """One command for each of the keys, at least one, in their order."""
        length = len(keys[0])
        if set(map(len, keys)) == {length}:  # as with numeric join keys
            head, tail = b"%b$%d\r\n" % (self._head, length), b"\r\n" + self._tail
            return head + (tail + head).join(keys) + tail
        return self._head + (self._tail + self._head).join(map(_argument, keys)) + self._tail


def _argument(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def redis_reader(store: "FeatureStore", views: Sequence[ViewColumns]) -> RedisReader | None:
    """A reader of the store's Redis; None for a cluster, sentinels or the GLIDE client, and for an unknown key layout.

    Raises:
        FeatureStoreError: its connection string is not valid.
    """
    online = store.config.online_store
    plain = online.redis_type is RedisType.redis and online.client is RedisClient.redis
    if not plain or not _project_follows_key(store.project):
        return None
    try:
        client = RedisOnlineStore()._get_client(online)
    except Exception as error:  # Feast and redis-py raise many kinds for a string that they don't take
        raise FeatureStoreError("reading the connection string of the online store", error) from error
    return RedisReader(client, store.project, views)


def _project_follows_key(project: str) -> bool:
    entity = EntityKey(join_keys=["a"], entity_values=[Value(int64_val=1)])
    expected = serialize_entity_key(entity, SERIALIZATION_VERSION) + project.encode()
    return bool(_redis_key(project, entity, SERIALIZATION_VERSION) == expected)
