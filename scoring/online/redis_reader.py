"""Reads many entities from Feast's Redis online store with pipelined commands.

`RedisReader` sends one command per distinct entity of each kind, up to 2000 before it reads replies, over redis-py's
connections. redis-py's own pipeline packs and dispatches each command in Python, which takes seven times as
long; a server-side script takes Redis twice the time (docs/adr/007).
"""

import itertools
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
from redis.exceptions import ConnectionError as RedisConnectionError

from scoring.errors import FeatureStoreError
from scoring.feast_plugins.entity_keys import SERIALIZATION_VERSION, entity_keys
from scoring.feast_plugins.join_keys import Keys
from scoring.feast_plugins.value_decoder import decode_columns, decode_timestamps
from scoring.online.reading import StoreRead, ViewColumns, distinct_entities
from scoring.online.redis_connections import Connections
from scoring.online.redis_replies import NotRedis, Replies, check_replies

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

# Maximum number of keys packed, sent and decoded together: Redis processes the first piece while the next one is
# packed, and the last piece while the first one is decoded.
KEYS_PER_PIECE = 400
# Maximum number of pieces sent before the first reply is read, because Redis buffers unread replies.
PIECES_AT_ONCE = 5
# Maximum size of commands that are sent without blocking: a socket accepts so many bytes at once.
MAX_SENT_BYTES = 16_384


class _Hashes:
    """The hashes of one kind of entity. One command per entity reads all views that share the join keys."""

    def __init__(self, keys: Keys, views: Sequence[ViewColumns]) -> None:
        self.keys = keys
        self.views = tuple(views)
        self.features = [feature for view in views for feature in view.features]
        self._alike: dict[pa.DataType, list[int]] = {}
        for place, feature in enumerate(self.features):
            self._alike.setdefault(feature.dtype, []).append(place)
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
            event_s = {view.name: decode_timestamps(each) for view, each in zip(self.views, timestamps, strict=True)}
            columns: dict[str, pa.Array] = {}
            for dtype, places in self._alike.items():
                decoded = decode_columns([values[place] for place in places], dtype)
                columns |= {self.features[place].column: each for place, each in zip(places, decoded, strict=True)}
            return StoreRead(event_s, columns)
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


class _Plan:
    """The keys to read for some entity rows, and how to make the rows' features from the hashes."""

    def __init__(self, kinds: Sequence[_Hashes], entity_rows: Mapping[str, Sequence[Any]], project: bytes) -> None:
        self.pieces: list[_Piece] = []
        self._places: dict[_Hashes, np.ndarray | None] = {}
        for hashes in kinds:
            entities, self._places[hashes] = distinct_entities(hashes.keys, entity_rows)
            keys = entity_keys(hashes.keys, entities, behind=project)
            self.pieces += [
                (hashes, keys[start : start + KEYS_PER_PIECE]) for start in range(0, len(keys), KEYS_PER_PIECE)
            ]

    def features(self, decoded: Sequence[StoreRead]) -> StoreRead:
        """Return the features of the rows from those of the pieces."""
        event_s: dict[str, np.ndarray] = {}
        columns: dict[str, pa.Array] = {}
        for hashes, places in self._places.items():
            read = hashes.join([part for (of, _), part in zip(self.pieces, decoded, strict=True) if of is hashes])
            if places is not None:
                read = read.take(places)
            event_s |= read.event_s
            columns |= read.columns
        return StoreRead(event_s, columns)


class RedisReader:
    """A `StoreReader` with one round trip per PIECES_AT_ONCE pieces of keys, of all kinds of entities."""

    store_errors = (RedisError, OSError)

    def __init__(self, client: "Redis", project: str, views: Sequence[ViewColumns]) -> None:
        """Store a client, the Feast project, and the features to read."""
        self._connections = Connections(client.connection_pool)
        self._project = project.encode()
        by_keys: dict[Keys, list[ViewColumns]] = {}
        for view in views:
            by_keys.setdefault(view.keys, []).append(view)
        self._hashes = [_Hashes(keys, each) for keys, each in by_keys.items()]

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """See `StoreReader.read`."""
        plan = _Plan(self._hashes, entity_rows, self._project)
        decoded: list[StoreRead] = []
        for start in range(0, len(plan.pieces), PIECES_AT_ONCE):
            decoded += self._fetch(plan.pieces[start : start + PIECES_AT_ONCE])
        return plan.features(decoded)

    def send(self, entity_rows: Mapping[str, Sequence[Any]]) -> "SentCommands | None":
        """Send the commands for a few entity rows, without blocking; None if that is impossible now."""
        plan = _Plan(self._hashes, entity_rows, self._project)
        packed = b"".join(hashes.command.packed(keys) for hashes, keys in plan.pieces)
        connection = self._connections.take_idle() if len(packed) <= MAX_SENT_BYTES else None
        if connection is None:
            return None
        try:
            connection.send_packed_command([packed], check_health=False)
        except Exception:  # the thread that reads instead reports it
            connection.disconnect()
            self._connections.give_back(connection)
            return None
        return SentCommands(connection, self._connections, plan)

    def _fetch(self, pieces: Sequence[_Piece]) -> list[StoreRead]:
        connection = self._connections.take()
        failed: Exception | None = None

        def exchange() -> list[StoreRead]:
            nonlocal failed
            failed, decoded = None, []
            connection.send_packed_command(hashes.command.packed(keys) for hashes, keys in pieces)
            received = Replies(connection)
            for hashes, keys in pieces:
                replies = received.read(len(keys))
                if failed is None:  # otherwise the remaining replies are read only to drain the connection
                    try:
                        decoded.append(hashes.decode(replies))
                    except (RedisConnectionError, NotRedis):
                        raise
                    except Exception as error:  # caused by one entity; the connection is usable
                        failed = error
            return decoded

        try:
            decoded: list[StoreRead] = connection.retry.call_with_retry(exchange, lambda _: connection.disconnect())
        except BaseException:  # unread replies may remain, or belong to another command
            connection.disconnect()
            raise
        finally:
            self._connections.give_back(connection)
        if failed is not None:
            raise failed
        return decoded


class SentCommands:
    """Commands whose replies are received without blocking."""

    def __init__(self, connection: Any, connections: Connections, plan: _Plan) -> None:
        """Store the connection on which they were sent, and where it goes afterwards."""
        self._connection, self._connections, self._plan = connection, connections, plan
        self._received = Replies(connection)
        self._replies: list[Any] = []
        self.fileno: int = connection._sock.fileno()

    def receive(self) -> StoreRead | None:
        """Return the features, or None if replies are missing. Called when the socket has bytes to read.

        Raises:
            Exception: any of those of `RedisReader.read`. `give_up` must be called then.
        """
        self._received.receive()
        keys = sum(len(keys) for _, keys in self._plan.pieces)
        self._replies += self._received.received(keys - len(self._replies))
        if len(self._replies) < keys:
            return None
        replies = iter(self._replies)
        decoded = [hashes.decode(list(itertools.islice(replies, len(keys)))) for hashes, keys in self._plan.pieces]
        self._connections.give_back(self._connection)
        return self._plan.features(decoded)

    def give_up(self) -> None:
        """Close the connection, whose replies may still arrive."""
        self._connection.disconnect()
        self._connections.give_back(self._connection)


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
