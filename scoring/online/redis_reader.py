"""Reads many entities from Feast's Redis online store with pipelined commands.

`RedisReader` sends one command per distinct entity of each kind, up to KEYS_AT_ONCE before it reads replies, over
redis-py's connections. redis-py's own pipeline packs and dispatches each command in Python, which takes seven times as
long; a server-side script takes Redis twice the time (docs/adr/007).
"""

import itertools
from collections.abc import Iterator, Sequence
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
from scoring.feast_plugins.packed_values import PackedValues
from scoring.feast_plugins.value_decoder import LAYOUTS, SeparateValues
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
# packed, and the last piece while the first one is decoded. Pieces of numbers are larger, as decoding one has a fixed
# cost.
KEYS_PER_PIECE = 400
NUMERIC_KEYS_PER_PIECE = 1000
# Maximum number of keys sent before the first reply is read, because Redis buffers unread replies.
KEYS_AT_ONCE = 2000
# Maximum size of commands that are sent without blocking: a socket accepts that many at once.
MAX_SENT_BYTES = 16_384
# Minimum number of values that are decoded where they were received (docs/adr/014): for fewer, hiredis is faster.
MANY_VALUES = 1200


class _Hashes:
    """The hashes of one kind of entity. One command per entity reads all views that share the join keys."""

    def __init__(self, keys: Keys, views: Sequence[ViewColumns], project: bytes) -> None:
        self.keys = keys
        self._project = project
        self.views = tuple(views)
        self.features = [feature for view in views for feature in view.features]
        # A hash's fields are the views' event times, then their features.
        alike: dict[pa.DataType, dict[str, int]] = {}
        for place, feature in enumerate(self.features, start=len(views)):
            alike.setdefault(feature.dtype, {})[feature.column] = place
        self._alike = [
            (dtype, LAYOUTS.get(dtype), tuple(places), tuple(places.values())) for dtype, places in alike.items()
        ]
        self._only_numbers = all(feature.dtype in LAYOUTS for feature in self.features)
        self.keys_per_piece = NUMERIC_KEYS_PER_PIECE if self._only_numbers else KEYS_PER_PIECE
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

    def receive(self, source: Replies, count: int) -> PackedValues | list[Any]:
        """Receive the next `count` replies, for `decode`."""
        width = self.command.width
        many = self._only_numbers and count * width >= MANY_VALUES
        packed = source.read_packed(count, width) if many else None
        return source.read(count) if packed is None else packed

    def decode(self, replies: PackedValues | Sequence[Any]) -> StoreRead:
        """Decode the replies for some hashes.

        Raises:
            redis.ConnectionError, redis.RedisError, NotRedis, UnusableFeature: see `columns_of`.
            UnusableFeature, google.protobuf.message.DecodeError: a value does not have its feature's declared type.
        """
        if isinstance(replies, PackedValues):
            fields: PackedValues | SeparateValues = replies
        else:
            fields = SeparateValues(columns_of(replies, self.command.width))
        try:
            event_s = {view.name: fields.timestamps(place) for place, view in enumerate(self.views)}
            others: dict[str, pa.Array] = {}
            known: list[Numbers] = []
            for dtype, layout, names, places in self._alike:
                numbers = None if layout is None else fields.numbers(places, layout)
                if numbers is None:
                    others |= {name: fields.array(place, dtype) for name, place in zip(names, places, strict=True)}
                else:
                    known.append(Numbers(names, dtype, numbers))
            return StoreRead(event_s, others, tuple(known))
        except Exception:
            # Check this only after an error, because nearly always every value has a type that Redis can return.
            if isinstance(fields, PackedValues) or fields.types() <= {bytes, type(None)}:
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
            size = hashes.keys_per_piece
            for start in range(0, count, size):
                some = {name: values[start : start + size] for name, values in columns.items()}
                self.pieces.append((hashes, some, min(size, count - start)))
        self.pieces.sort(key=lambda piece: -piece[2])  # because hiredis parses all that follow a small piece

    def round_trips(self) -> Iterator[list[_Piece]]:
        """Yield the pieces to send before replies are read."""
        pieces: list[_Piece] = []
        for piece in self.pieces:
            if pieces and sum(count for _, _, count in pieces) + piece[2] > KEYS_AT_ONCE:
                yield pieces
                pieces = []
            pieces.append(piece)
        yield pieces

    def features(self, decoded: Sequence[StoreRead]) -> StoreRead:
        """Return the features of the rows from those of the pieces."""
        reads = []
        for hashes, places in self._places.items():
            read = joined([part for (of, _, _), part in zip(self.pieces, decoded, strict=True) if of is hashes])
            reads.append(read if places is None else read.take(places))
        return merged(reads)


class RedisReader(StoreReader):
    """A `StoreReader` with one round trip per KEYS_AT_ONCE keys, of all kinds of entities."""

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
        for pieces in plan.round_trips():
            decoded += self._fetch(pieces)
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
                replies = hashes.receive(source, count)
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
