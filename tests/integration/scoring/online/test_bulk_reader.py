"""The bulk readers and Feast's own stores read what the other wrote, on a real Redis and on SQLite."""

import contextlib
import datetime as dt
import io
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.feast_plugins.entity_keys import entity_keys
from scoring.feast_plugins.join_keys import JoinKey
from scoring.feast_plugins.value_decoder import FEW, decode_values
from scoring.features.feature_service import link_features
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.features.model_features import ModelFeatures
from scoring.online.bulk_reader import bulk_reader, view_columns
from scoring.online.lookup import Lookup, read_rows
from scoring.online.reading import StoreReader
from scoring.online.redis_reader import KEYS_PER_PIECE, Group, ReadHashes, RedisReader
from scoring.settings import Settings
from tests.support.servers import HOST, RedisServer

if TYPE_CHECKING:
    from feast import FeatureStore

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
CONFIGURATION = """
project: bulk
provider: local
registry: {{path: data/registry.db}}
online_store: {online}
offline_store: {{type: duckdb}}
entity_key_serialization_version: 3
"""
# The same data, as Feast's own class and as ours find it.
STORES = {
    "redis": {
        "feast": '{{type: redis, connection_string: "{address}"}}',
        "bulk": '{{type: redis, connection_string: "{address}"}}',
    },
    "sqlite": {"feast": "{{type: sqlite, path: data/online.db}}", "bulk": "{{type: sqlite, path: data/online.db}}"},
}
NOW = dt.datetime.now(dt.UTC).replace(microsecond=123000)
INPUTS = {
    "rate": pa.float32(), "orders": pa.int32(), "open": pa.bool_(), "rent": pa.float64(), "city": pa.string(),
    "visits": pa.int64(), "bought": pa.float64(),
}  # fmt: skip
FIELDS = {
    "shop_id": "int64_val", "buyer": "string_val", "rate": "float_val", "orders": "int32_val", "open": "bool_val",
    "rent": "double_val", "city": "string_val", "visits": "int64_val", "bought": "double_val",
}  # fmt: skip


class World:
    """The same definitions over the same data, with each kind of store."""

    def __init__(self, folder: Path, redis: RedisServer, layout: str) -> None:
        self.layout = layout
        self.folder = folder
        (folder / "data").mkdir()
        (folder / "definitions.py").write_text(DEFINITIONS)
        for name, columns in {
            "stats": ["rate", "orders", "open"], "place": ["rent", "city", "visits"], "loyalty": ["buyer", "bought"],
        }.items():  # fmt: skip
            empty = pd.DataFrame({column: [0] for column in ["shop_id", *columns]}).assign(event_timestamp=NOW)
            empty.to_parquet(folder / "data" / f"{name}.parquet", coerce_timestamps="us")
        self.stores = {}
        for name, online in STORES[layout].items():
            text = CONFIGURATION.format(online=online.format(address=f"{redis.host}:{redis.port}"))
            (folder / f"{name}.yaml").write_text(text)
            chosen = Settings(model_name="m", feature_repo=folder, feature_store_yaml=f"{name}.yaml")
            self.stores[name] = open_feature_store(chosen)
        with contextlib.redirect_stderr(io.StringIO()):
            apply_definitions(self.stores["feast"])
        self.stores["bulk"].refresh_registry()

    def write(self, kind: str, view: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as Feast's materialization does, past its conversion from data frames."""
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey

        store = self.stores[kind]
        keys = ["shop_id", "buyer"] if view == "loyalty" else ["shop_id"]
        written = []
        for row in rows:
            entity = EntityKey(join_keys=keys, entity_values=[value_of(key, row[key]) for key in keys])
            values = {name: value_of(name, row[name]) for name in row if name not in (*keys, "event_timestamp")}
            written.append((entity, values, row["event_timestamp"], None))
        store.provider.online_write_batch(store.config, store.get_feature_view(view), written, None)


def value_of(name: str, content: Any) -> Any:
    from feast.protos.feast.types.Value_pb2 import Value

    value = Value()
    if content is not None:
        setattr(value, FIELDS[name], content)
    return value


@pytest.fixture(scope="module", params=list(STORES))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> World:
    return World(tmp_path_factory.mktemp("bulk"), redis_server, request.param)


def link(store: "FeatureStore", service: str, inputs: dict[str, pa.DataType]) -> ModelFeatures:
    signature = Signature(tuple(ModelInput(name, dtype) for name, dtype in inputs.items()))
    return link_features(store, "m/1", service, signature, ())


def reader_of(world: World, features: ModelFeatures) -> StoreReader:
    reader = bulk_reader(world.stores["bulk"], features)
    assert reader is not None
    return reader


def feasts_answer(world: World, features: ModelFeatures, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    store = world.stores["feast"]
    answer = store.get_online_features(store.get_feature_service(features.service), rows, full_feature_names=True)
    return {feature.column: answer.to_dict()[feature.column] for feature in features.features}


numbers = st.none() | st.floats(width=32, allow_nan=False)
shops = st.integers(1, 40)
stats_rows = st.fixed_dictionaries(
    {
        "shop_id": shops,
        "rate": numbers,
        "orders": st.none() | st.integers(-(2**31), 2**31 - 1),
        "open": st.none() | st.booleans(),
    }
)
place_rows = st.fixed_dictionaries(
    {"shop_id": shops, "rent": st.none() | st.floats(allow_nan=False), "city": st.none() | st.text(max_size=9),
     "visits": st.none() | st.integers(-(2**63), 2**63 - 1)}
)  # fmt: skip
loyalty_rows = st.fixed_dictionaries({"shop_id": shops, "buyer": st.sampled_from("abc"), "bought": numbers})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stats=st.lists(stats_rows, min_size=1, max_size=6), place=st.lists(place_rows, min_size=1, max_size=6),
    loyalty=st.lists(loyalty_rows, min_size=1, max_size=6), writer=st.sampled_from(["feast", "bulk"]),
    asked=st.lists(st.tuples(shops, st.sampled_from("abcd")), min_size=1, max_size=50),
)  # fmt: skip
def test_it_reads_what_feast_reads_whoever_wrote_it(
    world: World, stats: list[Any], place: list[Any], loyalty: list[Any], writer: str, asked: list[tuple[int, str]]
) -> None:
    now = dt.datetime.now(dt.UTC)
    for view, rows in {"stats": stats, "place": place, "loyalty": loyalty}.items():
        world.write(writer, view, [row | {"event_timestamp": now} for row in rows])
    features = link(world.stores["bulk"], "everything", INPUTS)
    keys = {"shop_id": [shop for shop, _ in asked], "buyer": [buyer for _, buyer in asked]}
    read = reader_of(world, features).read(keys)
    expected = feasts_answer(world, features, keys)
    assert {name: column.to_pylist() for name, column in read.columns.items()} == expected
    assert {name: column.type for name, column in read.columns.items()} == {
        feature.column: feature.dtype for feature in features.features
    }


def test_event_times_are_the_rows_own_and_zero_without_a_row(world: World) -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 250000, tzinfo=dt.UTC)
    world.write("feast", "stats", [{"shop_id": 900, "rate": 0.5, "orders": 1, "open": True, "event_timestamp": moment}])
    features = link(world.stores["bulk"], "everything", {"rate": pa.float32(), "rent": pa.float64()})
    read = reader_of(world, features).read({"shop_id": [900, 901], "buyer": ["a", "a"]})
    written_s = moment.timestamp() if world.layout == "redis" else moment.replace(microsecond=0).timestamp()
    assert read.written_s["stats"].tolist() == [written_s, 0.0]
    assert read.written_s["place"].tolist() == [0.0, 0.0]


def test_one_view_under_two_join_keys(world: World) -> None:
    world.write("bulk", "stats", [
        {"shop_id": shop, "rate": shop / 8, "orders": 1, "open": True, "event_timestamp": NOW} for shop in (801, 802)
    ])  # fmt: skip
    features = link(world.stores["bulk"], "mapped", {"pickup__rate": pa.float32(), "dropoff__rate": pa.float32()})
    keys = {"from_shop": [801, 802, 803], "to_shop": [802, 801, 801]}
    read = reader_of(world, features).read(keys)
    assert {name: column.to_pylist() for name, column in read.columns.items()} == feasts_answer(world, features, keys)


@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_views_of_one_entity_share_one_round_trip(world: World, redis_server: RedisServer) -> None:
    from redis import Redis

    features = link(world.stores["bulk"], "everything", {"rate": pa.float32(), "rent": pa.float64()})
    reader = reader_of(world, features)
    keys = {"shop_id": list(range(50)), "buyer": ["a"] * 50}
    reader.read(keys)  # the first call has to connect
    with Redis(redis_server.host, redis_server.port) as client:
        before = client.info("everything")
        reader.read(keys)
        after = client.info("everything")
    assert after["cmdstat_hmget"]["calls"] - before["cmdstat_hmget"]["calls"] == 50, "one an entity, for both views"
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2, "all in one, and this question"


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.lists(st.binary(max_size=9), min_size=1))
def test_commands_are_packed_as_the_client_library_packs_them(keys: list[bytes], fields: list[bytes]) -> None:
    from redis.connection import Connection

    theirs = (b"".join(Connection().pack_command("HMGET", key, *fields)) for key in keys)
    assert ReadHashes(fields).packed(keys) == b"".join(theirs)


@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_a_server_that_closes_its_connections_is_asked_again(world: World, redis_server: RedisServer) -> None:
    from redis import Redis

    features = link(world.stores["bulk"], "everything", {"rate": pa.float32()})
    reader = reader_of(world, features)
    keys = {"shop_id": [1], "buyer": ["a"]}
    reader.read(keys)
    with Redis(redis_server.host, redis_server.port) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert len(reader.read(keys).columns["stats__rate"]) == 1


def test_more_entities_than_one_call_takes(world: World) -> None:
    features = link(world.stores["bulk"], "everything", {"rate": pa.float32()})
    read = reader_of(world, features).read({"shop_id": list(range(5001)), "buyer": ["a"] * 5001})
    assert len(read.columns["stats__rate"]) == 5001


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=20), st.integers(-(2**31), 2**31 - 1))))
def test_keys_are_feasts_own(rows: list[tuple[int, str, int]]) -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = (("a", JoinKey("x", "int64")), ("b", JoinKey("y", "string")), ("c", JoinKey("z", "int32")))
    ours = entity_keys(keys, {"x": [r[0] for r in rows], "y": [r[1] for r in rows], "z": [r[2] for r in rows]})
    theirs = [
        serialize_entity_key(EntityKey(join_keys=["a", "b", "c"], entity_values=[
            Value(int64_val=a), Value(string_val=b), Value(int32_val=c)]), 3)
        for a, b, c in rows
    ]  # fmt: skip
    assert ours == theirs


@pytest.mark.parametrize("options", ["redis_type: redis_cluster", "redis_type: redis_sentinel", "client: glide"])
@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_clusters_sentinels_and_other_clients_are_left_to_feast(world: World, options: str) -> None:
    online = f'{{type: redis, connection_string: "{HOST}:1", {options}}}'
    (world.folder / "other.yaml").write_text(CONFIGURATION.format(online=online))
    chosen = Settings(model_name="m", feature_repo=world.folder, feature_store_yaml="other.yaml")
    store = open_feature_store(chosen)
    assert bulk_reader(store, link(store, "everything", {"rate": pa.float32()})) is None


def test_vectors_and_reasons_are_the_same_by_either_way(world: World) -> None:
    from scoring.online.lookup import feast_lookup, read_online_vectors

    now = dt.datetime.now(dt.UTC)
    fresh, old = now - dt.timedelta(minutes=1), now - dt.timedelta(hours=4)
    row = {"rate": 0.1, "orders": 1, "open": True}
    world.write("feast", "stats", [
        {"shop_id": 701, **row, "event_timestamp": fresh}, {"shop_id": 702, **row, "event_timestamp": old},
        {"shop_id": 703, **row, "rate": None, "event_timestamp": fresh},
    ])  # fmt: skip
    features = link(world.stores["bulk"], "everything", {"orders": pa.float64(), "rate": pa.float64()})
    asked = {"shop_id": [701, 702, 703, 704, 701], "buyer": ["a"] * 5}
    slow = read_online_vectors(feast_lookup(world.stores["feast"], features), features, asked, now)
    fast = read_online_vectors(Lookup(reader_of(world, features)), features, asked, now)
    assert slow.reasons.to_pylist() == [None, "stale", "null_feature", "not_found", None]
    assert fast.reasons.to_pylist() == slow.reasons.to_pylist()
    assert fast.vectors.to_pydict() == slow.vectors.to_pydict()
    assert fast.oldest_s == slow.oldest_s


def test_a_value_of_an_earlier_declaration_is_read_as_feasts_way_reads_it(world: World) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    store = world.stores["feast"]
    for shop, value in ((951, Value(int64_val=5)), (952, Value(double_val=0.5)), (953, Value(int64_val=2**40))):
        entity = EntityKey(join_keys=["shop_id"], entity_values=[Value(int64_val=shop)])
        rows = [(entity, {"rate": Value(float_val=1.0), "orders": value, "open": Value(bool_val=True)}, NOW, None)]
        store.provider.online_write_batch(store.config, store.get_feature_view("stats"), rows, None)
    features = link(world.stores["bulk"], "everything", {"orders": pa.int32()})
    reader = reader_of(world, features)
    assert reader.read({"shop_id": [951], "buyer": ["a"]}).columns["stats__orders"].to_pylist() == [5]
    for shop in (952, 953):
        with pytest.raises(UnusableFeature, match="declared int32"):
            reader.read({"shop_id": [shop] * 30, "buyer": ["a"] * 30})


@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_a_key_that_holds_something_else_is_no_failure_of_redis(world: World, redis_server: RedisServer) -> None:
    from redis import Redis

    features = link(world.stores["bulk"], "everything", {"rate": pa.float32()})
    view = store_view(world)
    key = entity_keys(view, {"shop_id": [960]})[0] + b"bulk"
    with Redis(redis_server.host, redis_server.port) as client:
        client.set(key, "no hash")
    with pytest.raises(UnusableFeature):
        reader_of(world, features).read({"shop_id": [960], "buyer": ["a"]})


@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_bytes_that_are_no_value_are_no_failure_of_the_store_by_feasts_way_either(
    world: World, redis_server: RedisServer
) -> None:
    from feast.infra.online_stores.helpers import _mmh3
    from redis import Redis

    from scoring.online.lookup import feast_lookup, read_online_vectors

    world.write("feast", "stats", [{"shop_id": 961, "rate": 0.5, "orders": 1, "open": True, "event_timestamp": NOW}])
    with Redis(redis_server.host, redis_server.port) as client:
        client.hset(entity_keys(store_view(world), {"shop_id": [961]})[0] + b"bulk", _mmh3("stats:rate"), b"\xff\xff")
    features = link(world.stores["feast"], "everything", {"rate": pa.float32()})
    with pytest.raises(UnusableFeature):
        read_online_vectors(
            feast_lookup(world.stores["feast"], features), features, {"shop_id": [961], "buyer": ["a"]}, NOW
        )


@contextlib.contextmanager
def something_else(said: bytes) -> Iterator[tuple[str, int]]:
    """A server that answers each HMGET with the same bytes."""

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                if line in {b"HMGET\r\n", b"SETINFO\r\n"}:
                    self.wfile.write(said if line == b"HMGET\r\n" else b"+OK\r\n")

    with socketserver.ThreadingTCPServer((HOST, 0), Answer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield HOST, server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    "said",
    [
        b"+OK\r\n",
        b"$-1\r\n",
        b":1\r\n",
        b"*0\r\n",
        b"*1\r\n$1\r\na\r\n",
        b"*2\r\n:5\r\n:6\r\n",
        b"*2\r\n:0\r\n:0\r\n",
        b"*2\r\n*0\r\n*0\r\n",
        b"*2\r\n*1\r\n:5\r\n*1\r\n:6\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_what_answers_in_another_form_than_redis_is_a_failed_store(world: World, said: bytes) -> None:
    from redis import Redis

    views = view_columns(link(world.stores["bulk"], "everything", {"rate": pa.float32()}))
    groups = [Group(view.keys, (view,)) for view in views or ()]
    with something_else(said) as (host, port), Redis(host, port, retry=None, socket_timeout=5) as client:
        with pytest.raises(FeatureStoreError) as caught:
            read_rows(RedisReader(client, "bulk", groups), {"shop_id": [970], "buyer": ["a"]})
        # Whatever it sends after an answer of another length must not be taken for the answer to the next request.
        closed = [each._sock for each in client.connection_pool._available_connections] == [None]
        assert closed or said.startswith(b"*2")
    assert not isinstance(caught.value, UnusableFeature)


@pytest.mark.parametrize(
    "said", [b"-LOADING Redis is loading the dataset in memory\r\n", b"-NOAUTH no\r\n", b"-ERR no\r\n"]
)
@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_an_error_for_one_of_many_entities_is_the_stores_and_no_entitys(world: World, said: bytes) -> None:
    from redis import Redis

    views = view_columns(link(world.stores["bulk"], "everything", {"rate": pa.float32()}))
    groups = [Group(view.keys, (view,)) for view in views or ()]
    with (
        something_else(said) as (host, port),
        Redis(host, port, retry=None, socket_timeout=5) as client,
        pytest.raises(FeatureStoreError) as caught,
    ):
        read_rows(RedisReader(client, "bulk", groups), {"shop_id": [970, 971, 972], "buyer": ["a"] * 3})
    assert not isinstance(caught.value, UnusableFeature)


@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_it_reads_over_the_newer_protocol_too(world: World, redis_server: RedisServer) -> None:
    from redis import Redis

    world.write("feast", "stats", [{"shop_id": 980, "rate": 0.5, "orders": 1, "open": True, "event_timestamp": NOW}])
    views = view_columns(link(world.stores["bulk"], "everything", {"rate": pa.float32()}))
    groups = [Group(view.keys, (view,)) for view in views or ()]
    with Redis(redis_server.host, redis_server.port, protocol=3) as client:
        read = RedisReader(client, "bulk", groups).read({"shop_id": [980, 981], "buyer": ["a", "a"]})
    assert read.columns["stats__rate"].to_pylist() == [0.5, None]


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300), min_size=FEW, max_size=40),
    same_length=st.booleans(),
    broken=st.none() | st.tuples(st.integers(0, FEW - 1), st.integers(0, 11), st.binary(max_size=11)),
)
def test_whole_numbers_are_unpacked_as_protobuf_parses_them(
    values: list[int], same_length: bool, broken: tuple[int, int, bytes] | None
) -> None:
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError

    if same_length:
        values = [2**20 + abs(value) % 2**20 for value in values]
    stored = [Value(int64_val=value).SerializeToString() for value in values]
    if broken is not None:
        place, kept, behind = broken
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


@pytest.mark.parametrize("world", ["redis"], indirect=True)
def test_a_connection_that_dribbles_is_given_up_in_time_and_not_taken_again(world: World) -> None:
    from redis import Redis

    class Dribble(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                for line in self.rfile:
                    if line == b"SETINFO\r\n":
                        self.wfile.write(b"+OK\r\n")
                    elif line == b"HMGET\r\n":
                        for byte in b"*2\r\n$100\r\n" + b"a" * 100:
                            self.wfile.write(bytes([byte]))
                            time.sleep(0.05)

    views = view_columns(link(world.stores["bulk"], "everything", {"rate": pa.float32()}))
    groups = [Group(view.keys, (view,)) for view in views or ()]
    with socketserver.ThreadingTCPServer((HOST, 0), Dribble) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with Redis(HOST, server.server_address[1], retry=None, socket_timeout=0.2) as client:
            began = time.monotonic()
            with pytest.raises(FeatureStoreError):
                read_rows(RedisReader(client, "bulk", groups), {"shop_id": [970], "buyer": ["a"]})
            assert time.monotonic() - began < 2, "the dribble takes more than 5 seconds"
            assert [each._sock for each in client.connection_pool._available_connections] == [None]
        server.shutdown()


def store_view(world: World) -> tuple[tuple[str, JoinKey], ...]:
    return (("shop_id", JoinKey("shop_id", "int64")),)


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
def test_what_a_killed_writer_left_half_way_is_rolled_back_by_whoever_reads_first(world: World) -> None:
    row = {"shop_id": 970, "rate": 0.5, "orders": 1, "open": True, "event_timestamp": NOW}
    world.write("feast", "stats", [row])
    database = world.folder / "data" / "online.db"
    killed = subprocess.run([sys.executable, "-c", WRITER, str(database)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert database.with_name("online.db-journal").exists()
    features = link(world.stores["bulk"], "everything", {"rate": pa.float32()})
    read = reader_of(world, features).read({"shop_id": [970], "buyer": ["a"]})
    assert read.columns["stats__rate"].to_pylist() == [0.5]


@pytest.mark.parametrize("world", ["redis"], indirect=True)
@pytest.mark.parametrize("place", [0, KEYS_PER_PIECE - 1, KEYS_PER_PIECE, 2 * KEYS_PER_PIECE + 7])
def test_a_bad_value_in_any_piece_is_its_entitys_and_the_connection_goes_on(
    world: World, redis_server: RedisServer, place: int
) -> None:
    from feast.infra.online_stores.helpers import _mmh3
    from redis import Redis

    shops = list(range(20_000, 20_000 + 2 * KEYS_PER_PIECE + 8))
    row = {"rate": 0.5, "orders": 1, "open": True, "event_timestamp": NOW}
    world.write("bulk", "stats", [{"shop_id": shop, **row, "rate": shop / 8} for shop in shops])
    features = link(world.stores["bulk"], "everything", {"rate": pa.float32()})
    reader = reader_of(world, features)
    asked = {"shop_id": shops, "buyer": ["a"] * len(shops)}
    expected = [shop / 8 for shop in shops]
    assert reader.read(asked).columns["stats__rate"].to_pylist() == expected
    key = entity_keys(store_view(world), {"shop_id": [shops[place]]})[0] + b"bulk"
    with Redis(redis_server.host, redis_server.port) as client:
        good = client.hget(key, _mmh3("stats:rate"))
        client.hset(key, _mmh3("stats:rate"), b"\xff\xff")
        with pytest.raises(UnusableFeature):
            read_rows(reader, asked)
        others = {"shop_id": shops[:place] + shops[place + 1 :], "buyer": ["a"] * (len(shops) - 1)}
        assert reader.read(others).columns["stats__rate"].to_pylist() == expected[:place] + expected[place + 1 :]
        client.hset(key, _mmh3("stats:rate"), good)
    assert reader.read(asked).columns["stats__rate"].to_pylist() == expected
