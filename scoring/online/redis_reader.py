"""Reads many entities from Feast's Redis online store with pipelined commands.

`RedisReader` sends one command per distinct entity of each kind, up to 2000 before it reads replies, over redis-py's
connections. redis-py's own pipeline packs and dispatches each command in Python, which takes seven times as
long; a server-side script takes Redis twice the time (docs/adr/007).
"""

import itertools
from collections.abc import Sequence
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
from scoring.feast_plugins.value_decoder import LAYOUTS, decode_numbers, decode_timestamps, decode_values
from scoring.online.reading import (
    EntityRows,
    Numbers,
    StoreRead,
    StoreReader,
    ViewColumns,
    distinct_entities,
    joined,
    merged,
)
from scoring.online.redis_commands import (
    MANY_NUMBERS,
    NUMBERS,
    HmgetCommand,
    NotRedis,
    NumberedCommand,
    columns_of,
)
from scoring.online.redis_connections import Connections, Replies

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

    def __init__(self, keys: Keys, views: Sequence[ViewColumns], project: bytes) -> None:
        self.keys = keys
        self._project = project
        self.views = tuple(views)
        self.features = [feature for view in views for feature in view.features]
        alike: dict[pa.DataType, list[int]] = {}
        for place, feature in enumerate(self.features):
            alike.setdefault(feature.dtype, []).append(place)
        self._alike = [
            (dtype, LAYOUTS.get(dtype), tuple(self.features[place].column for place in places), places)
            for dtype, places in alike.items()
        ]
        names = [f"{view.view.name}:{feature.name}" for view in views for feature in view.features]
        self.command = HmgetCommand([*(f"_ts:{view.view.name}".encode() for view in views), *map(_mmh3, names)])
        dtype = NUMBERS.get(keys[0][1].dtype) if len(keys) == 1 else None
        self._numbers = None if dtype is None else NumberedCommand(self._by_keys, keys[0][1].name, dtype)

    def commands(self, entities: EntityRows) -> bytes:
        """Return one command per entity, in order; there is at least one entity."""
        if self._numbers is not None:
            values = entities[self._numbers.name]
            if len(values) >= MANY_NUMBERS:
                return self._numbers.packed(values)
        return self._by_keys(entities)

    def _by_keys(self, entities: EntityRows) -> bytes:
        return self.command.packed(entity_keys(self.keys, entities, behind=self._project))

    def decode(self, replies: Sequence[Any]) -> StoreRead:
        """Decode the replies for some hashes.

        Raises:
            redis.ConnectionError, redis.RedisError, NotRedis, UnusableFeature: see `columns_of`.
            UnusableFeature, google.protobuf.message.DecodeError: a value does not have its feature's declared type.
        """
        fields = columns_of(replies, self.command.width)
        timestamps, values = fields[: len(self.views)], fields[len(self.views) :]
        try:
            event_s = {view.name: decode_timestamps(each) for view, each in zip(self.views, timestamps, strict=True)}
            others: dict[str, pa.Array] = {}
            known: list[Numbers] = []
            for dtype, layout, names, places in self._alike:
                columns = [values[place] for place in places]
                numbers = None if layout is None else decode_numbers(columns, layout)
                if numbers is None:
                    others |= {name: decode_values(each, dtype) for name, each in zip(names, columns, strict=True)}
                else:
                    known.append(Numbers(names, dtype, numbers))
            return StoreRead(event_s, others, tuple(known))
        except Exception:
            # Check this only after an error, because nearly always every value has a type that Redis can return.
            if {kind for each in fields for kind in map(type, each)} <= {bytes, type(None)}:
                raise
            raise NotRedis from None


_Piece = tuple[_Hashes, EntityRows, int]
"""Hashes, the entities to read from them, and how many these are."""


class _Plan:
    """The keys to read for some entity rows, and how to make the rows' features from the hashes."""

    def __init__(self, kinds: Sequence[_Hashes], entity_rows: EntityRows) -> None:
        self.pieces: list[_Piece] = []
        self._places: dict[_Hashes, np.ndarray | None] = {}
        for hashes in kinds:
            entities, self._places[hashes] = distinct_entities(hashes.keys, entity_rows)
            columns = {key.name: entities[key.name] for _, key in hashes.keys}
            count = len(columns[hashes.keys[0][1].name])
            for start in range(0, count, KEYS_PER_PIECE):
                some = {name: values[start : start + KEYS_PER_PIECE] for name, values in columns.items()}
                self.pieces.append((hashes, some, min(KEYS_PER_PIECE, count - start)))

    def features(self, decoded: Sequence[StoreRead]) -> StoreRead:
        """Return the features of the rows from those of the pieces."""
        reads = []
        for hashes, places in self._places.items():
            read = joined([part for (of, _, _), part in zip(self.pieces, decoded, strict=True) if of is hashes])
            reads.append(read if places is None else read.take(places))
        return merged(reads)


class RedisReader(StoreReader):
    """A `StoreReader` with one round trip per PIECES_AT_ONCE pieces of keys, of all kinds of entities."""

    store_errors = (RedisError, OSError)

    def __init__(self, client: "Redis", project: str, views: Sequence[ViewColumns]) -> None:
        """Store a client, the Feast project, and the features to read."""
        self._connections = Connections(client.connection_pool)
        by_keys: dict[Keys, list[ViewColumns]] = {}
        for view in views:
            by_keys.setdefault(view.keys, []).append(view)
        self._hashes = [_Hashes(keys, each, project.encode()) for keys, each in by_keys.items()]

    def read(self, entity_rows: EntityRows) -> StoreRead:
        """See `StoreReader.read`."""
        plan = _Plan(self._hashes, entity_rows)
        decoded: list[StoreRead] = []
        for start in range(0, len(plan.pieces), PIECES_AT_ONCE):
            decoded += self._fetch(plan.pieces[start : start + PIECES_AT_ONCE])
        return plan.features(decoded)

    def send(self, entity_rows: EntityRows) -> "SentCommands | None":
        """Send the commands for a few entity rows, without blocking; None if that is impossible now."""
        plan = _Plan(self._hashes, entity_rows)
        packed = b"".join(hashes.commands(entities) for hashes, entities, _ in plan.pieces)
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
            connection.send_packed_command(hashes.commands(entities) for hashes, entities, _ in pieces)
            source = Replies(connection)
            for hashes, _, count in pieces:
                replies = source.read(count)
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
        self._source = Replies(connection)
        self._replies: list[Any] = []
        self.fileno: int = connection._sock.fileno()

    def receive(self) -> StoreRead | None:
        """Return the features, or None if replies are missing. Called when the socket has bytes to read.

        Raises:
            Exception: any of those of `RedisReader.read`. `give_up` must be called then.
        """
        self._source.receive()
        expected = sum(count for _, _, count in self._plan.pieces)
        self._replies += self._source.arrived(expected - len(self._replies))
        if len(self._replies) < expected:
            return None
        replies = iter(self._replies)
        decoded = [hashes.decode(list(itertools.islice(replies, count))) for hashes, _, count in self._plan.pieces]
        features = self._plan.features(decoded)
        self._connections.give_back(self._connection)  # last, because `give_up` also does after an error
        return features

    def give_up(self) -> None:
        """Close the connection, whose replies may still arrive."""
        self._connection.disconnect()
        self._connections.give_back(self._connection)


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
