"""The bulk readers read what Feast's own stores wrote, as Feast reads it, on a real Redis and on SQLite."""

import contextlib
import datetime as dt
import select
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.connection import Connection

from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.feast_plugins.entity_keys import entity_keys
from scoring.feast_plugins.join_keys import JoinKey
from scoring.feast_plugins.value_decoder import FEW, LAYOUTS, VALUE_FIELDS, decode_numbers, decode_values
from scoring.features.feature_service import link_features
from scoring.features.model_features import ModelFeatures, feast_name
from scoring.online.bulk_reader import bulk_reader, view_columns
from scoring.online.empty_views import EmptyViews
from scoring.online.feast_reader import FeastReader
from scoring.online.lookup import Lookup, read_online_vectors, read_rows
from scoring.online.reading import Numbers, StoreReader
from scoring.online.redis_commands import MANY_NUMBERS, HmgetCommand
from scoring.online.redis_reader import NUMERIC_KEYS_PER_PIECE, RedisReader
from tests.support.feature_repository import SQLITE, open_repository, write_definitions
from tests.support.servers import HOST, RedisServer

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Float64, Int32, Int64, String

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
buyer = Entity(name="buyer", join_keys=["buyer"], value_type=ValueType.STRING)
source = lambda name: FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp")
stats = FeatureView(
    name="stats", entities=[shop], ttl=timedelta(hours=3), source=source("stats"),
    schema=[Field(name="rate", dtype=Float32), Field(name="orders", dtype=Int32), Field(name="open", dtype=Bool)],
)
place = FeatureView(
    name="place", entities=[shop], ttl=timedelta(0), source=source("place"),
    schema=[Field(name="rent", dtype=Float64), Field(name="city", dtype=String), Field(name="visits", dtype=Int64)],
)
loyalty = FeatureView(
    name="loyalty", entities=[shop, buyer], ttl=timedelta(0), source=source("loyalty"),
    schema=[Field(name="bought", dtype=Float64)],
)
everything = FeatureService(name="everything", features=[stats, place, loyalty])
mapped = FeatureService(name="mapped", features=[
    stats.with_name("pickup").with_join_key_map({"shop_id": "from_shop"}),
    stats[["rate"]].with_name("dropoff").with_join_key_map({"shop_id": "to_shop"})])
"""
NOW = dt.datetime.now(dt.UTC).replace(microsecond=123000)
STATS = {"rate": 0.5, "orders": 1, "open": True, "event_timestamp": NOW}
INPUTS = {
    "rate": pa.float32(), "orders": pa.int32(), "open": pa.bool_(), "rent": pa.float64(), "city": pa.string(),
    "visits": pa.int64(), "bought": pa.float64(),
}  # fmt: skip
FIELDS = {
    "shop_id": "int64_val", "buyer": "string_val", "rate": "float_val", "orders": "int32_val", "open": "bool_val",
    "rent": "double_val", "city": "string_val", "visits": "int64_val", "bought": "double_val",
}  # fmt: skip


class World:
    """A Feast store of one kind."""

    def __init__(self, folder: Path, redis: RedisServer, kind: str, project: str = "bulk") -> None:
        self.kind = kind
        self.folder = folder
        write_definitions(folder, DEFINITIONS)
        for name, columns in {
            "stats": ["rate", "orders", "open"], "place": ["rent", "city", "visits"], "loyalty": ["buyer", "bought"],
        }.items():  # fmt: skip
            empty = pd.DataFrame({column: [0] for column in ["shop_id", *columns]}).assign(event_timestamp=NOW)
            empty.to_parquet(folder / "data" / f"{name}.parquet", coerce_timestamps="us")
        online = f'{{type: redis, connection_string: "{redis.host}:{redis.port}"}}' if kind == "redis" else SQLITE
        self.store = open_repository(folder, project=project, online=online)

    def write(self, view: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as Feast's materialization does, without its conversion from data frames."""
        keys = ["shop_id", "buyer"] if view == "loyalty" else ["shop_id"]
        written = []
        for row in rows:
            entity = EntityKey(join_keys=keys, entity_values=[value_of(key, row[key]) for key in keys])
            values = {name: value_of(name, row[name]) for name in row if name not in (*keys, "event_timestamp")}
            written.append((entity, values, row["event_timestamp"], None))
        self.store.provider.online_write_batch(self.store.config, self.store.get_feature_view(view), written, None)

    def link(self, *inputs: str, service: str = "everything") -> ModelFeatures:
        signature = Signature(tuple(ModelInput(name, INPUTS[name.rpartition("__")[2]]) for name in inputs))
        return link_features(self.store, "m/1", service, signature, ())

    def reader(self, features: ModelFeatures) -> StoreReader:
        reader = bulk_reader(self.store, features)
        assert reader is not None
        return reader

    def rates(self, shops: list[int]) -> list[float]:
        read = read_rows(self.reader(self.link("rate")), stores_shops(shops))
        rates: list[float] = read.columns["stats:rate"].to_pylist()
        return rates

    def feasts_answer(self, features: ModelFeatures, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        service = self.store.get_feature_service(features.service)
        answer = self.store.get_online_features(service, rows, full_feature_names=True).to_dict()
        return {feature.column: answer[feast_name(feature.column)] for feature in features.features}


def value_of(name: str, content: Any) -> Value:
    return Value() if content is None else Value(**{FIELDS[name]: content})


def stores_shops(shops: list[int]) -> dict[str, list[Any]]:
    return {"shop_id": shops, "buyer": ["a"] * len(shops)}


def key_of(shop: int) -> bytes:
    """Its key in Redis."""
    return entity_keys((("shop_id", JoinKey("shop_id", "int64")),), {"shop_id": [shop]})[0] + b"bulk"


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> World:
    return World(tmp_path_factory.mktemp("bulk"), redis_server, request.param)


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis(redis_server.host, redis_server.port) as client:
        yield client


on_redis = pytest.mark.parametrize("world", ["redis"], indirect=True)

numbers = st.none() | st.floats(width=32, allow_nan=False)
shops = st.integers(1, 40)
stats_rows = st.fixed_dictionaries(
    {"shop_id": shops, "rate": numbers, "orders": st.none() | st.integers(-(2**31), 2**31 - 1),
     "open": st.none() | st.booleans()}
)  # fmt: skip
place_rows = st.fixed_dictionaries(
    {"shop_id": shops, "rent": st.none() | st.floats(allow_nan=False), "city": st.none() | st.text(max_size=9),
     "visits": st.none() | st.integers(-(2**63), 2**63 - 1)}
)  # fmt: skip
loyalty_rows = st.fixed_dictionaries({"shop_id": shops, "buyer": st.sampled_from("abc"), "bought": numbers})


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stats=st.lists(stats_rows, min_size=1, max_size=6), place=st.lists(place_rows, min_size=1, max_size=6),
    loyalty=st.lists(loyalty_rows, min_size=1, max_size=6),
    requested=st.lists(st.tuples(shops, st.sampled_from("abcd")), min_size=1, max_size=50),
)  # fmt: skip
def test_it_reads_what_feast_reads(
    world: World, stats: list[Any], place: list[Any], loyalty: list[Any], requested: list[tuple[int, str]]
) -> None:
    now = dt.datetime.now(dt.UTC)
    for view, rows in {"stats": stats, "place": place, "loyalty": loyalty}.items():
        world.write(view, [row | {"event_timestamp": now} for row in rows])
    features = world.link(*INPUTS)
    keys = {"shop_id": [shop for shop, _ in requested], "buyer": [buyer for _, buyer in requested]}
    read = world.reader(features).read(keys)
    assert {name: column.to_pylist() for name, column in read.columns.items()} == world.feasts_answer(features, keys)
    assert {name: column.type for name, column in read.columns.items()} == {
        feature.column: feature.dtype for feature in features.features
    }


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_views_without_a_row_are_known(kind: str, tmp_path: Path, redis_server: RedisServer) -> None:
    world = World(tmp_path, redis_server, kind, project="empty")
    features = world.link("rate", "rent")
    empty = EmptyViews(world.store, features)
    assert empty.names == ["place", "stats"]
    world.write("stats", [{"shop_id": 1, **STATS, "event_timestamp": NOW}])
    empty.row_found()  # that says nothing of the other view
    empty.search_again()
    assert empty.names == EmptyViews(world.store, features).names == ["place"]
    world.write("place", [{"shop_id": 1, "rent": 1.0, "city": None, "visits": None, "event_timestamp": NOW}])
    empty.search_again()
    assert empty.names == []


def test_of_other_stores_the_registry_tells_whether_a_view_was_ever_filled(tmp_path: Path) -> None:
    online = f'{{type: redis, connection_string: "{HOST}:1", redis_type: redis_cluster}}'
    write_definitions(tmp_path, DEFINITIONS)
    store = open_repository(tmp_path, project="bulk", online=online)
    signature = Signature((ModelInput("rate", INPUTS["rate"]),))
    empty = EmptyViews(store, link_features(store, "m/1", "everything", signature, ()))
    assert empty.names == ["stats"]
    empty.search_again()
    assert empty.names == ["stats"]
    empty.row_found()
    assert not empty.names


def test_event_times_are_the_rows_own_and_zero_without_a_row(world: World) -> None:
    written = dt.datetime(2026, 1, 2, 3, 4, 5, 250000, tzinfo=dt.UTC)
    world.write("stats", [{"shop_id": 900, **STATS, "event_timestamp": written}])
    read = world.reader(world.link("rate", "rent")).read(stores_shops([900, 901]))
    stored = written if world.kind == "redis" else written.replace(microsecond=0)
    assert read.event_s["stats"].tolist() == [stored.timestamp(), 0.0]
    assert read.event_s["place"].tolist() == [0.0, 0.0]


def test_one_view_under_two_join_keys(world: World) -> None:
    world.write("stats", [{"shop_id": shop, **STATS, "rate": shop / 8} for shop in (801, 802)])
    features = world.link("pickup__rate", "dropoff__rate", service="mapped")
    keys = {"from_shop": [801, 802, 803], "to_shop": [802, 801, 801]}
    read = world.reader(features).read(keys)
    assert {name: column.to_pylist() for name, column in read.columns.items()} == world.feasts_answer(features, keys)


@on_redis
def test_views_of_one_entity_share_one_round_trip(world: World, redis: Redis) -> None:
    reader = world.reader(world.link("rate", "rent"))
    reader.read(stores_shops(list(range(50))))  # the first call has to connect
    before = redis.info("everything")
    reader.read(stores_shops(list(range(50))))
    after = redis.info("everything")
    assert after["cmdstat_hmget"]["calls"] - before["cmdstat_hmget"]["calls"] == 50, "one per entity, for both views"
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2, "all in one, and INFO"


@on_redis
def test_an_entity_that_repeats_is_read_once(world: World, redis: Redis) -> None:
    reader = world.reader(world.link("rate", "bought"))
    before = redis.info("commandstats")
    read = reader.read({"shop_id": [7] * 900, "buyer": ["a", "b", "c"] * 300})
    calls = redis.info("commandstats")["cmdstat_hmget"]["calls"] - before["cmdstat_hmget"]["calls"]
    assert (calls, len(read.columns["stats:rate"]), len(read.columns["loyalty:bought"])) == (1 + 3, 900, 900)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.lists(st.binary(max_size=9), min_size=1))
def test_commands_are_packed_as_the_client_library_packs_them(keys: list[bytes], fields: list[bytes]) -> None:
    theirs = (b"".join(Connection().pack_command("HMGET", key, *fields)) for key in keys)
    assert HmgetCommand(fields).packed(keys) == b"".join(theirs)


@on_redis
def test_a_server_that_closes_its_connections_is_called_again(world: World, redis: Redis) -> None:
    reader = world.reader(world.link("rate"))
    reader.read(stores_shops([1]))
    redis.client_kill_filter(_type="normal", skipme=True)
    assert len(reader.read(stores_shops([1])).columns["stats:rate"]) == 1


def test_more_entities_than_one_call_takes(world: World) -> None:
    assert len(world.rates(list(range(5001)))) == 5001


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=20), st.integers(-(2**31), 2**31 - 1))))
def test_keys_are_feasts_own(rows: list[tuple[int, str, int]]) -> None:
    keys = (("a", JoinKey("x", "int64")), ("b", JoinKey("y", "string")), ("c", JoinKey("z", "int32")))
    ours = entity_keys(keys, {"x": [r[0] for r in rows], "y": [r[1] for r in rows], "z": [r[2] for r in rows]})
    theirs = [
        serialize_entity_key(EntityKey(join_keys=["a", "b", "c"], entity_values=[
            Value(int64_val=a), Value(string_val=b), Value(int32_val=c)]), 3)
        for a, b, c in rows
    ]  # fmt: skip
    assert ours == theirs


@pytest.mark.parametrize("options", ["redis_type: redis_cluster", "redis_type: redis_sentinel", "client: glide"])
@on_redis
def test_clusters_sentinels_and_other_clients_are_left_to_feast(world: World, options: str) -> None:
    online = f'{{type: redis, connection_string: "{HOST}:1", {options}}}'
    store = open_repository(world.folder, "other", online=online, apply=False)
    assert bulk_reader(store, world.link("rate")) is None


def test_vectors_and_reasons_are_the_same_in_bulk_and_through_feast(world: World) -> None:
    now = dt.datetime.now(dt.UTC)
    fresh, old = now - dt.timedelta(minutes=1), now - dt.timedelta(hours=4)
    row = STATS | {"rate": 0.1, "event_timestamp": fresh}
    world.write("stats", [
        {"shop_id": 701, **row}, {"shop_id": 702, **row, "event_timestamp": old}, {"shop_id": 703, **row, "rate": None},
    ])  # fmt: skip
    features = world.link("orders", "rate")
    requested = stores_shops([701, 702, 703, 704, 701])
    slow = read_online_vectors(Lookup(FeastReader(world.store, features)), features, requested, now)
    fast = read_online_vectors(Lookup(world.reader(features)), features, requested, now)
    assert slow.reasons.to_pylist() == [None, "stale", "null_feature", "not_found", None]
    assert fast.reasons.to_pylist() == slow.reasons.to_pylist()
    assert fast.vectors.to_pydict() == slow.vectors.to_pydict()
    assert fast.oldest_s == slow.oldest_s


def test_a_value_of_an_earlier_declaration_is_read_as_feast_reads_it(world: World) -> None:
    store = world.store
    for shop, value in ((951, Value(int64_val=5)), (952, Value(double_val=0.5)), (953, Value(int64_val=2**40))):
        entity = EntityKey(join_keys=["shop_id"], entity_values=[Value(int64_val=shop)])
        rows = [(entity, {"rate": Value(float_val=1.0), "orders": value, "open": Value(bool_val=True)}, NOW, None)]
        store.provider.online_write_batch(store.config, store.get_feature_view("stats"), rows, None)
    reader = world.reader(world.link("orders"))
    assert reader.read(stores_shops([951])).columns["stats:orders"].to_pylist() == [5]
    for shop in (952, 953):
        with pytest.raises(UnusableFeature, match="declared int32"):
            read_rows(reader, stores_shops([shop] * 30))


@on_redis
def test_a_key_of_another_kind_is_not_a_failure_of_redis(world: World, redis: Redis) -> None:
    redis.set(key_of(960), "not a hash")
    with pytest.raises(UnusableFeature):
        world.rates([960])


@on_redis
def test_bytes_that_are_not_a_value_are_not_a_failure_of_the_store_through_feast_either(
    world: World, redis: Redis
) -> None:
    world.write("stats", [{"shop_id": 961, **STATS}])
    redis.hset(key_of(961), _mmh3("stats:rate"), b"\xff\xff")
    with pytest.raises(UnusableFeature):
        read_rows(FeastReader(world.store, world.link("rate")), stores_shops([961]))


@contextlib.contextmanager
def server_that_answers(hmget: bytes, pause_s: float = 0) -> Iterator[tuple[str, int]]:
    """A server that answers each HMGET with the same bytes, perhaps with a pause after each byte."""

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    answer = {b"HMGET\r\n": hmget, b"SETINFO\r\n": b"+OK\r\n"}.get(line, b"")
                    for part in [answer] if not pause_s else (answer[i : i + 1] for i in range(len(answer))):
                        self.wfile.write(part)
                        time.sleep(pause_s)

    with socketserver.ThreadingTCPServer((HOST, 0), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield HOST, server.server_address[1]
        server.shutdown()


def failed_store(world: World, client: Redis, shops: list[int]) -> None:
    """Read from what `client` is connected to, which must be reported as a failure of the store, not of an entity."""
    reader = RedisReader(client, "bulk", view_columns(world.link("rate")) or [])
    with pytest.raises(FeatureStoreError) as caught:
        read_rows(reader, stores_shops(shops))
    assert not isinstance(caught.value, UnusableFeature)


@pytest.mark.parametrize(
    "answer",
    [
        b"+OK\r\n", b"$-1\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n$1\r\na\r\n", b"*2\r\n:5\r\n:6\r\n",
        b"*2\r\n:0\r\n:0\r\n", b"*2\r\n*0\r\n*0\r\n", b"*2\r\n*1\r\n:5\r\n*1\r\n:6\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-LOADING the dataset in memory\r\n", b"-NOAUTH no\r\n", b"-ERR no\r\n",
    ],
)  # fmt: skip
@on_redis
def test_an_error_for_one_of_many_entities_or_an_answer_of_another_form_is_a_failed_store(
    world: World, answer: bytes
) -> None:
    error = answer.startswith(b"-")
    with (
        server_that_answers(answer) as (host, port),
        Redis(host, port, retry=None, socket_timeout=5) as client,
    ):
        failed_store(world, client, [970, 971, 972] if error else [970])
        # What it sends after an answer of another length must not be taken for the answer to the next request.
        closed = [each._sock for each in client.connection_pool._available_connections] == [None]
        assert closed or error or answer.startswith(b"*2")


@on_redis
def test_a_connection_that_dribbles_is_given_up_in_time_and_not_used_again(world: World) -> None:
    dribble = b"*2\r\n$100\r\n" + b"a" * 100
    with (
        server_that_answers(dribble, pause_s=0.05) as (host, port),
        Redis(host, port, retry=None, socket_timeout=0.2) as client,
    ):
        began = time.monotonic()
        failed_store(world, client, [970])
        assert time.monotonic() - began < 2, "the whole answer takes more than 5 seconds"
        assert [each._sock for each in client.connection_pool._available_connections] == [None]


@on_redis
def test_it_reads_over_the_newer_protocol_too(world: World, redis_server: RedisServer) -> None:
    world.write("stats", [{"shop_id": 980, **STATS}])
    with Redis(redis_server.host, redis_server.port, protocol=3) as client:
        read = RedisReader(client, "bulk", view_columns(world.link("rate")) or []).read(stores_shops([980, 981]))
    assert read.columns["stats:rate"].to_pylist() == [0.5, None]


@on_redis
def test_many_commands_with_a_numeric_key_are_those_of_serialized_keys(world: World) -> None:
    hashes = world.reader(world.link("rate"))._hashes[0]  # type: ignore[attr-defined]
    shops = [0, -1, 2**63 - 1, -(2**63), *range(200, 200 + MANY_NUMBERS)]
    assert hashes.commands({"shop_id": shops}) == b"".join(hashes.commands({"shop_id": [shop]}) for shop in shops)


@on_redis
def test_a_few_entities_are_read_without_blocking(world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("stats", [{"shop_id": 990, **STATS}])
    reader = world.reader(world.link("rate", "rent"))
    assert isinstance(reader, RedisReader)
    rows = stores_shops([990, 991])
    assert reader.send(rows) is None, "no connection is open"
    expected = reader.read(rows)

    def received() -> Any:
        sent = reader.send(rows)
        assert sent is not None
        select.select([sent.fileno], [], [])
        return sent.receive()

    for _ in range(2):
        assert received().columns == expected.columns
    assert reader.send(stores_shops(list(range(1000)))) is None, "so many commands might block"
    assert received().columns == expected.columns
    good = redis.hget(key_of(990), _mmh3("stats:rate"))
    redis.hset(key_of(990), _mmh3("stats:rate"), b"\xff\xff")
    sent = reader.send(rows)
    assert sent is not None
    select.select([sent.fileno], [], [])
    with pytest.raises(DecodeError):
        sent.receive()
    sent.give_up()
    assert reader.send(rows) is None, "its connection is closed"
    redis.hset(key_of(990), _mmh3("stats:rate"), good)
    assert reader.read(rows).columns == expected.columns
    sent = reader.send(rows)
    assert sent is not None
    select.select([sent.fileno], [], [])
    with monkeypatch.context() as patch:
        patch.setattr(sent._plan, "features", mock.Mock(side_effect=ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            sent.receive()
    sent.give_up()
    assert reader.send(rows) is None, "its connection is closed, and was not given back before"
    assert reader.read(rows).columns == expected.columns
    redis.client_kill_filter(_type="normal", skipme=True)
    assert reader.send(rows) is None, "the server has closed the connection"
    assert reader.read(rows).columns == expected.columns


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300), min_size=1, max_size=2 * FEW),
    same_length=st.booleans(),
    broken=st.none() | st.tuples(st.integers(0, 2 * FEW), st.integers(0, 11), st.binary(max_size=11)),
)
def test_integers_are_unpacked_as_protobuf_parses_them(
    values: list[int], same_length: bool, broken: tuple[int, int, bytes] | None
) -> None:
    if same_length:
        values = [2**20 + abs(value) % 2**20 for value in values]
    stored = [Value(int64_val=value).SerializeToString() for value in values]
    if broken is not None:
        place, kept, behind = broken
        place %= len(stored)
        stored[place] = stored[place][:kept] + behind
    try:
        parsed = [Value.FromString(each) for each in stored]
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_values(stored, pa.int64())
        return
    if all(each.WhichOneof("val") in {"int64_val", None} for each in parsed):
        expected = [each.int64_val if each.WhichOneof("val") else None for each in parsed]
        assert decode_values(stored, pa.int64()).to_pylist() == expected


@given(
    columns=st.integers(1, 30).flatmap(
        lambda rows: st.lists(
            st.lists(st.none() | st.integers(-(2**31), 2**40), min_size=rows, max_size=rows)
            | st.lists(st.integers(0, 300), min_size=rows, max_size=rows),
            min_size=1,
            max_size=8,
        )
    ),
    dtype=st.sampled_from(list(LAYOUTS)),
    declared=st.just(True) | st.booleans(),
)
def test_columns_are_decoded_together_as_each_alone(
    columns: list[list[int | None]], dtype: pa.DataType, declared: bool
) -> None:
    kind: Any = {pa.float32(): float, pa.float64(): float, pa.bool_(): bool}.get(dtype, int)
    field = VALUE_FIELDS[dtype if declared else pa.int64()]
    stored = [
        [
            None if each is None else Value(**{field: _as(kind if declared else int, each)}).SerializeToString()
            for each in column
        ]
        for column in columns
    ]

    numbers = decode_numbers(stored, LAYOUTS[dtype])
    if numbers is None:
        broken = not declared or any(None in column or max(map(abs, column)) >= 2**31 for column in columns)
        assert broken, "whole columns of the declared type are decoded together"
        return
    together = Numbers(tuple(map(str, range(len(stored)))), dtype, numbers).columns()
    assert list(together.values()) == [decode_values(column, dtype) for column in stored]


def _as(kind: Any, value: int) -> Any:
    return min(value, 2**31 - 1) if kind is int else kind(value)


WRITER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE bulk_stats SET value = x'00'")
numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000)"
connection.execute(f"CREATE TABLE ballast AS {numbers} SELECT i, randomblob(100) FROM n")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
def test_the_unfinished_transaction_of_a_killed_writer_is_rolled_back_by_the_next_reader(world: World) -> None:
    world.write("stats", [{"shop_id": 970, **STATS}])
    (database,) = (world.folder / "data").glob("*.online.db")
    killed = subprocess.run([sys.executable, "-c", WRITER, str(database)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert database.with_name(f"{database.name}-journal").exists()
    assert world.rates([970]) == [0.5]


@on_redis
@pytest.mark.parametrize(
    "place", [0, NUMERIC_KEYS_PER_PIECE - 1, NUMERIC_KEYS_PER_PIECE, 2 * NUMERIC_KEYS_PER_PIECE + 7]
)
def test_a_bad_value_in_any_piece_is_its_entitys_and_the_connection_goes_on(
    world: World, redis: Redis, place: int
) -> None:
    shops = list(range(20_000, 20_000 + 2 * NUMERIC_KEYS_PER_PIECE + 8))
    world.write("stats", [{"shop_id": shop, **STATS, "rate": shop / 8} for shop in shops])
    reader = world.reader(world.link("rate"))

    def rates(shops: list[int]) -> Any:
        return read_rows(reader, stores_shops(shops)).columns["stats:rate"].to_pylist()

    expected = [shop / 8 for shop in shops]
    assert rates(shops) == expected
    connections = redis.info("stats")["total_connections_received"]
    good = redis.hget(key_of(shops[place]), _mmh3("stats:rate"))
    for bad in (b"\xff\xff", Value(string_val="x").SerializeToString()):
        redis.hset(key_of(shops[place]), _mmh3("stats:rate"), bad)
        with pytest.raises(UnusableFeature):
            rates(shops)
        assert rates(shops[:place] + shops[place + 1 :]) == expected[:place] + expected[place + 1 :]
    redis.hset(key_of(shops[place]), _mmh3("stats:rate"), good)
    assert rates(shops) == expected
    assert redis.info("stats")["total_connections_received"] == connections


@on_redis
@pytest.mark.parametrize("missing", [False, True])
def test_many_entities_are_read_as_feast_reads_them(world: World, missing: bool) -> None:
    random = np.random.default_rng(5)
    shops = list(range(30_000, 31_400)) if missing else list(range(40_000, 41_400))
    written = [NOW, NOW - dt.timedelta(seconds=1)]
    rows = [
        {"shop_id": shop, "rate": random.normal(), "orders": int(random.integers(-(2**31), 2**31)),
         "open": bool(random.integers(2)), "event_timestamp": written[shop % 2]}
        for shop in shops
    ]  # fmt: skip
    if missing:
        rows = [row if shop % 7 else row | {"orders": None} for shop, row in enumerate(rows) if shop % 5]
    world.write("stats", rows)
    keys = stores_shops(random.permutation(shops).tolist())
    features = world.link("rate", "orders", "open")
    read = world.reader(features).read(keys)
    assert {name: column.to_pylist() for name, column in read.columns.items()} == world.feasts_answer(features, keys)
    assert len(read.numbers) == (0 if missing else 3), "decoded together"
    assert set(read.event_s["stats"]) == {time.timestamp() for time in written} | ({0.0} if missing else set())


@on_redis
def test_a_key_of_another_kind_among_many_is_reported_at_once(world: World, redis: Redis) -> None:
    shops = list(range(32_000, 33_000))
    redis.set(key_of(shops[500]), "not a hash")
    reader = world.reader(world.link("rate"))
    began = time.monotonic()
    with pytest.raises(UnusableFeature):
        read_rows(reader, stores_shops(shops))
    assert time.monotonic() - began < 2, "it does not wait for replies that never come"
    assert len(read_rows(reader, stores_shops([*shops[:500], *shops[501:]])).columns["stats:rate"]) == 999


@on_redis
def test_a_connection_that_is_closed_between_many_replies_is_a_failed_store(world: World) -> None:
    class Closing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                if line == b"HMGET\r\n":
                    self.wfile.write(b"*2\r\n$-1\r\n$-1\r\n" * 500 + b"*2\r\n$-1")
                    return
                if line == b"SETINFO\r\n":
                    self.wfile.write(b"+OK\r\n")

    with socketserver.ThreadingTCPServer((HOST, 0), Closing) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with Redis(*server.server_address, retry=None, socket_timeout=5) as client:
            failed_store(world, client, list(range(1000)))
        server.shutdown()


@on_redis
def test_many_replies_that_do_not_arrive_are_given_up_in_time(world: World) -> None:
    with (
        server_that_answers(b"*2\r\n$-1\r\n", pause_s=0.05) as (host, port),
        Redis(host, port, retry=None, socket_timeout=0.3) as client,
    ):
        began = time.monotonic()
        failed_store(world, client, list(range(1000)))
        assert time.monotonic() - began < 2
        assert [each._sock for each in client.connection_pool._available_connections] == [None]
