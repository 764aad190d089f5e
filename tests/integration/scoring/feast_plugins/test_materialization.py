"""The engine that materializes in slices leaves in a real Redis and in SQLite what Feast's own engine leaves there."""

import contextlib
import datetime as dt
import io
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from scoring.errors import NotMaterialized
from scoring.feast_plugins.redis_timeouts import REDIS_TIMEOUT_S
from scoring.features.materialize import materialize_online_store, read_watermarks
from scoring.imports import inside
from tests.support.feature_repository import ASOF, SQLITE, open_repository, write_definitions
from tests.support.servers import RedisServer, environment_for_servers

if TYPE_CHECKING:
    from feast import FeatureStore

ROOT = Path(__file__).resolve().parents[4]
ENGINE = "scoring.feast_plugins.materialization.StreamingComputeEngine"
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import (
    Array, Bool, Bytes, Float32, Float64, Int32, Int64, Json, String, UnixTimestamp,
)

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
buyer = Entity(name="buyer", join_keys=["buyer"], value_type=ValueType.STRING)
source = lambda name, mapping={}: FileSource(
    name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp", created_timestamp_column="created",
    field_mapping=mapping)
every = FeatureView(
    name="every", entities=[shop, buyer], ttl=timedelta(days=9999), source=source("every", {"i4": "int32"}),
    schema=[
        Field(name="int32", dtype=Int32), Field(name="i8", dtype=Int64), Field(name="small", dtype=Int64),
        Field(name="f4", dtype=Float32), Field(name="f8", dtype=Float64), Field(name="f8_as_f4", dtype=Float32),
        Field(name="text", dtype=String), Field(name="flag", dtype=Bool), Field(name="raw", dtype=Bytes),
        Field(name="since", dtype=UnixTimestamp), Field(name="vector", dtype=Array(Float32)),
        Field(name="counts", dtype=Array(Int64)), Field(name="words", dtype=Array(String)),
        Field(name="seen", dtype=Array(UnixTimestamp)),
    ],
)
odd = FeatureView(
    name="odd", entities=[shop], ttl=timedelta(days=9999), source=source("odd"),
    schema=[Field(name="notes", dtype=Json), Field(name="rate", dtype=Float32)],
)
plain = FeatureView(
    name="plain", entities=[shop], ttl=timedelta(days=9999), source=source("plain"),
    schema=[Field(name="rate", dtype=Float32), Field(name="orders", dtype=Int64)],
)
"""
STORES = ("redis", "sqlite")
BEFORE = dt.datetime(1960, 1, 1, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
MOMENT = pa.timestamp("us", "UTC")
EVERY = pa.schema({
    "shop_id": pa.int64(), "buyer": pa.string(), "event_timestamp": MOMENT, "created": MOMENT, "i4": pa.int32(),
    "i8": pa.int64(), "small": pa.int8(), "f4": pa.float32(), "f8": pa.float64(), "f8_as_f4": pa.float64(),
    "text": pa.string(), "flag": pa.bool_(), "raw": pa.binary(), "since": MOMENT, "vector": pa.list_(pa.float32()),
    "counts": pa.list_(pa.int64()), "words": pa.list_(pa.string()), "seen": pa.list_(pa.timestamp("us")),
})  # fmt: skip
PLAIN = pa.schema({
    "shop_id": pa.int64(), "event_timestamp": MOMENT, "created": MOMENT, "rate": pa.float32(), "orders": pa.int64(),
})  # fmt: skip


class World:
    """One repository, with Feast's engine and ours, over a store of each kind each."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        write_definitions(folder, DEFINITIONS)
        self.folder, self.redis = folder, redis
        self.numbers: list[str] = []
        self.write("every", pa.Table.from_pylist([], EVERY))
        self.write("plain", pa.Table.from_pylist([], PLAIN))
        self.write("odd", pa.Table.from_pylist([], PLAIN.append(pa.field("notes", pa.string()))))

    def write(self, view: str, rows: pa.Table) -> None:
        pq.write_table(rows, self.folder / "data" / f"{view}.parquet")

    def open(self, name: str, kind: str, engine: str, offline: str = ASOF) -> "FeatureStore":
        """A store with nothing in it, applied."""
        online = SQLITE if kind == "sqlite" else f'{{type: redis, connection_string: "{self.address(name)}"}}'
        return open_repository(self.folder, name, online=online, engine=engine, offline=offline)

    def address(self, name: str) -> str:
        if name not in self.numbers:
            self.numbers.append(name)
        return f"{self.redis.host}:{self.redis.port},db={1 + self.numbers.index(name)}"

    def clear(self, name: str, store: "FeatureStore") -> None:
        """Take every row out of the online store."""
        if name.endswith("redis"):
            with Redis(self.redis.host, self.redis.port, db=int(self.address(name).rpartition("=")[2])) as client:
                client.flushdb()
        else:
            connection = store.provider.online_store._get_conn(store.config)
            connection.execute("DELETE FROM tests_every")
            connection.commit()

    def content(self, name: str, kind: str) -> Any:
        """Everything that the online store keeps, byte for byte."""
        if kind == "redis":
            number = int(self.address(name).rpartition("=")[2])
            with Redis(self.redis.host, self.redis.port, db=number) as client:
                return {key: client.hgetall(key) for key in client.scan_iter(count=1000)}
        with contextlib.closing(sqlite3.connect(self.folder / "data" / f"{name}.online.db")) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
            query = "SELECT *, typeof(value_text) FROM {} ORDER BY entity_key, feature_name"
            return {table: connection.execute(query.format(table)).fetchall() for (table,) in tables}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> World:
    return World(tmp_path_factory.mktemp("filled"), redis_server)


@pytest.fixture(scope="module")
def filled(world: World) -> dict[tuple[str, str], "FeatureStore"]:
    """Engine and kind of store → such a store."""
    engines = {"local": "local", "ours": ENGINE}
    return {
        (engine, kind): world.open(f"fill_{engine}_{kind}", kind, name)
        for engine, name in engines.items()
        for kind in STORES
    }


def fill(store: "FeatureStore", view: str, until: dt.datetime = NOW) -> None:
    """Materialize one view as Feast's command does, without its registry."""
    with inside(Path(store.repo_path)):
        store.provider.materialize_single_feature_view(
            store.config, store.get_feature_view(view), BEFORE, until, store.registry, store.project, lambda _: None
        )


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


moments = st.integers(-3, 400).map(lambda hour: NOW - dt.timedelta(hours=hour, microseconds=hour % 3 * 123_456))
finite = st.floats(allow_nan=False)
rows_of_every = st.fixed_dictionaries({
    "shop_id": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), "buyer": st.sampled_from(["a", "é" * 90, ""]),
    "event_timestamp": moments, "created": moments,
    "i4": maybe(st.integers(-(2**31), 2**31 - 1)),
    # Feast sends a column of whole numbers with a null among them through doubles.
    "i8": maybe(st.integers(-(2**53), 2**53)), "small": maybe(st.integers(-128, 127)),
    "f4": maybe(st.floats(width=32)), "f8": maybe(st.floats()), "f8_as_f4": maybe(finite),
    "text": maybe(st.text(max_size=9) | st.just("x" * 300)), "flag": maybe(st.booleans()),
    # It takes empty bytes for nulls where the column has no others.
    "raw": maybe(st.binary(min_size=1, max_size=9)), "since": maybe(moments),
    "vector": maybe(st.lists(st.floats(width=32, allow_nan=False), max_size=3)),
    "counts": maybe(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)),
    "words": maybe(st.lists(st.text(max_size=4), max_size=3)),
    "seen": maybe(st.lists(moments.map(lambda moment: moment.replace(tzinfo=None)), max_size=2)),
})  # fmt: skip


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(loads=st.lists(st.lists(rows_of_every, min_size=1, max_size=10), min_size=1, max_size=2))
def test_both_stores_hold_the_same_bytes_after_either_engine(
    world: World, filled: dict[tuple[str, str], "FeatureStore"], loads: list[list[dict[str, Any]]]
) -> None:
    for (engine, kind), store in filled.items():
        world.clear(f"fill_{engine}_{kind}", store)
    before = script_calls(world.redis)
    for rows in loads:  # older rows of the second must not win over what the first left, where Feast compares
        world.write("every", pa.Table.from_pylist(rows, EVERY))
        for store in filled.values():
            fill(store, "every")
        for kind in STORES:
            assert world.content(f"fill_ours_{kind}", kind) == world.content(f"fill_local_{kind}", kind)
    assert script_calls(world.redis) > before, "Feast's own code wrote both"


def test_a_view_with_a_type_of_its_own_is_left_to_feast(
    world: World, filled: dict[tuple[str, str], "FeatureStore"]
) -> None:
    row = {"shop_id": 7, "event_timestamp": NOW, "created": NOW, "rate": 0.5, "orders": 1, "notes": '{"a": [1]}'}
    world.write("odd", pa.Table.from_pylist([row], PLAIN.append(pa.field("notes", pa.string()))))
    for kind in STORES:
        for engine in ("local", "ours"):
            fill(filled[engine, kind], "odd")
        assert world.content(f"fill_ours_{kind}", kind) == world.content(f"fill_local_{kind}", kind)


def plain_rows(shops: int, hours: int) -> pa.Table:
    random = np.random.default_rng(5)
    hour = np.repeat(np.arange(hours), shops)
    stamps = pa.array(np.datetime64(NOW.replace(tzinfo=None), "us") - hour.astype("timedelta64[h]")).cast(MOMENT)
    rates, orders = random.random(shops * hours), random.integers(0, 9, shops * hours)
    columns = [np.tile(np.arange(shops), hours), stamps, stamps, rates.astype(np.float32), orders]
    return pa.table([pa.array(column) for column in columns], schema=PLAIN)


def test_another_offline_store_is_read_by_feast_and_written_in_bulk(world: World) -> None:
    world.write("plain", plain_rows(300, 3))
    contents = []
    for engine, name in {"local": "local", "ours": ENGINE}.items():
        fill(world.open(f"duckdb_{engine}", "redis", name, offline="duckdb"), "plain")
        contents.append(world.content(f"duckdb_{engine}", "redis"))
    assert len(contents[0]) == 300
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", STORES)
def test_feasts_own_command_goes_on_from_the_watermark(world: World, kind: str) -> None:
    from feast import FeatureStore

    world.write("plain", plain_rows(50, 3))
    kept = {}
    for engine, name in {"local": "local", "ours": ENGINE}.items():
        store = world.open(f"mark_{engine}_{kind}", kind, name)
        store.registry.delete_feature_view("every", store.project)
        store.registry.delete_feature_view("odd", store.project)
        materialize_online_store(store, NOW - dt.timedelta(hours=1))
        first = store.get_feature_view("plain")
        # From here on, Feast's own engine in both.
        store = FeatureStore(repo_path=str(world.folder), fs_yaml_file=world.folder / f"mark_{engine}_{kind}.yaml")
        store.config.batch_engine_config = "local"
        with contextlib.redirect_stdout(io.StringIO()), inside(world.folder):
            store.materialize_incremental(NOW)
        last = store.get_feature_view("plain")
        ends = [end for _, end in last.materialization_intervals]
        starts = [start for start, _ in last.materialization_intervals]
        kept[engine] = (first.state, last.state, ends, starts[1], world.content(f"mark_{engine}_{kind}", kind))
    assert kept["ours"] == kept["local"]
    assert kept["ours"][2] == [NOW - dt.timedelta(hours=1), NOW]


def test_a_store_that_lost_everything_is_filled_again(world: World) -> None:
    world.write("plain", plain_rows(50, 3))
    world.write("every", pa.Table.from_pylist([], EVERY))  # not what another test left, with moments of later on
    world.write("odd", pa.Table.from_pylist([], PLAIN.append(pa.field("notes", pa.string()))))
    store = world.open("lost_redis", "redis", ENGINE)
    first, second, last = (NOW + dt.timedelta(hours=hours) for hours in (1, 2, 3))
    materialize_online_store(store, first)
    before = world.content("lost_redis", "redis")
    assert before
    world.clear("lost_redis", store)
    materialize_online_store(store, second)
    assert world.content("lost_redis", "redis") == {}  # the watermarks say that all is there
    marks = materialize_online_store(store, last, everything=True)
    assert world.content("lost_redis", "redis") == before
    assert {mark.until for mark in marks} == {last}


def test_a_run_that_was_killed_midway_is_completed_by_the_next(world: World, tmp_path: Path) -> None:
    world.write("plain", plain_rows(150_000, 1))
    store = world.open("killed", "redis", ENGINE)
    for view in ("every", "odd"):
        store.registry.delete_feature_view(view, store.project)
    code = (
        "import datetime as dt; from pathlib import Path; from scoring.settings import Settings\n"
        "from scoring.features.feature_store import open_feature_store\n"
        "from scoring.features.materialize import materialize_online_store\n"
        f"settings = Settings(model_name='m', feature_repo=Path({str(world.folder)!r}), "
        "feature_store_yaml='killed.yaml')\n"
        f"materialize_online_store(open_feature_store(settings), dt.datetime.fromisoformat({NOW.isoformat()!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment_for_servers())
    number = int(world.address("killed").rpartition("=")[2])
    with Redis(world.redis.host, world.redis.port, db=number) as client:
        patience = time.monotonic() + 60
        while not client.dbsize() and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert 0 < client.dbsize() < 150_000
        store.refresh_registry()
        assert store.get_feature_view("plain").materialization_intervals == []
        marks = {mark.feature_view: mark.until for mark in materialize_online_store(store, NOW)}
        assert client.dbsize() == 150_000
    assert marks == {"plain": NOW}


def test_rows_travel_many_to_a_call(world: World, filled: dict[tuple[str, str], "FeatureStore"]) -> None:
    world.write("plain", plain_rows(2000, 2))
    before = script_calls(world.redis)
    fill(filled["ours", "redis"], "plain")
    assert 4 <= script_calls(world.redis) - before < 10


def script_calls(redis: RedisServer) -> int:
    """How many scripts the server has run."""
    with Redis(redis.host, redis.port) as client:
        found: Any = client.info("commandstats")
        return int(found.get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.mark.parametrize("kind", STORES)
def test_another_layout_than_the_known_one_is_found_out(
    world: World, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    from scoring.feast_plugins.online_writers import writer_for
    from scoring.feast_plugins.row_encoding import matches_feast_layout, row_encoding

    world.write("plain", plain_rows(3, 1))
    store = world.open(f"layout_{kind}", kind, ENGINE)
    view = store.get_feature_view("plain")
    columns = row_encoding(view, PLAIN)
    assert columns is not None
    writer = writer_for(store.config, view, store.provider.online_store)
    assert writer is not None
    assert matches_feast_layout(writer, columns, PLAIN)
    rate, encode = columns.encoders["rate"]
    columns.encoders["rate"] = (rate, lambda column: [each[::-1] for each in encode(column)])
    assert not matches_feast_layout(writer, columns, PLAIN)
    columns.encoders.pop("rate")
    with caplog.at_level(logging.WARNING):
        assert not matches_feast_layout(writer, columns, PLAIN)
    assert "plain" in caplog.text


SHOPS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
def source(name):
    return FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp")
def view(name):
    return FeatureView(name=name, entities=[shop], ttl=timedelta(days=9999),
        schema=[Field(name="rate", dtype=Float64)], source=source(name))
"""


def write_rates(folder: Path, rates: dict[int, float], event: dt.datetime = NOW - dt.timedelta(hours=1)) -> None:
    table = {"shop_id": list(rates), "rate": list(rates.values()), "event_timestamp": [event] * len(rates)}
    pq.write_table(pa.table(table), folder / "data" / "rates.parquet")


def stored_rates(store: "FeatureStore", shops: list[int]) -> list[float | None]:
    rows: Any = store.get_online_features(["rates:rate"], {"shop_id": shops}).to_dict()
    return list(rows["rate"])


def test_a_view_that_cannot_be_materialized_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    write_definitions(tmp_path, SHOPS + 'broken, rates = view("broken"), view("rates")\n')
    write_rates(tmp_path, {1: 0.5})
    store = open_repository(tmp_path)
    with pytest.raises(NotMaterialized) as caught:
        materialize_online_store(store, NOW)
    said = str(caught.value)
    assert "Feature view 'broken': Feature source 'data/broken.parquet': there is no Parquet file at " in said
    assert "rates'" not in said
    assert "\n" not in said
    assert stored_rates(store, [1]) == [0.5]
    assert {mark.feature_view: mark.until for mark in read_watermarks(store)} == {"broken": None, "rates": NOW}


@pytest.fixture
def rates_in_redis(tmp_path: Path, world: World) -> Callable[..., "FeatureStore"]:
    """Opens a store on the view `rates` with an online store of its own, or with this section."""
    write_definitions(tmp_path, SHOPS + 'rates = view("rates")\n')
    address = world.address(str(tmp_path))
    redis = f'{{type: redis, connection_string: "{address}", key_ttl_seconds: 3600}}'
    with Redis(world.redis.host, world.redis.port, db=int(address.rpartition("=")[2])) as client:
        client.flushdb()
    return lambda online=redis: open_repository(tmp_path, online=online, engine=ENGINE)


@pytest.mark.parametrize("kind", STORES)
def test_a_source_that_was_corrected_overwrites_what_the_online_store_has(
    tmp_path: Path, rates_in_redis: Callable[..., "FeatureStore"], kind: str
) -> None:
    write_rates(tmp_path, {1: 0.5})
    store = rates_in_redis() if kind == "redis" else rates_in_redis(SQLITE)
    materialize_online_store(store, NOW)
    write_rates(tmp_path, {1: 0.75})  # the same event time
    materialize_online_store(store, NOW + dt.timedelta(hours=1))
    assert stored_rates(store, [1]) == [0.5]
    materialize_online_store(store, NOW + dt.timedelta(hours=1), overwrite=True)
    assert stored_rates(store, [1]) == [0.75]


def test_materializing_renews_the_time_to_live_of_a_key_that_stays_as_it_is(
    tmp_path: Path, rates_in_redis: Callable[..., "FeatureStore"]
) -> None:
    write_rates(tmp_path, {1: 0.5})
    store = rates_in_redis()
    materialize_online_store(store, NOW)
    client = store.provider.online_store._get_client(store.config.online_store)
    (key,) = client.keys()
    client.expire(key, 60)
    materialize_online_store(store, NOW + dt.timedelta(hours=1), everything=True)
    assert client.ttl(key) > 3000


def test_a_redis_user_who_may_not_run_scripts_is_served_by_feasts_own_way(
    tmp_path: Path, world: World, rates_in_redis: Callable[..., "FeatureStore"], caplog: pytest.LogCaptureFixture
) -> None:
    write_rates(tmp_path, {1: 0.5, 2: 0.25})
    rights = ["+hmget", "+hset", "+expire", "+select"]
    with Redis(world.redis.host, world.redis.port) as client:
        client.execute_command("ACL", "SETUSER", "writer", "on", ">secret", "~*", "resetchannels", "-@all", *rights)
        user = f'{{type: redis, connection_string: "{world.address(str(tmp_path))},username=writer,password=secret"}}'
        store = rates_in_redis(user)
        with caplog.at_level(logging.INFO):
            materialize_online_store(store, NOW)
        assert stored_rates(store, [1, 2]) == [0.5, 0.25]
        assert "Feast itself writes rows of feature view 'rates': this user of Redis may not run scripts" in caplog.text
        client.execute_command("ACL", "SETUSER", "writer", "+evalsha", "+script|load")
        before = script_calls(world.redis)
        materialize_online_store(rates_in_redis(user), NOW + dt.timedelta(hours=1), everything=True)
        assert script_calls(world.redis) > before
        client.execute_command("ACL", "DELUSER", "writer")


@pytest.mark.parametrize("answers", ["nothing", "no TLS"])
def test_a_redis_that_does_not_answer_ends_the_materialization_in_seconds(
    tmp_path: Path, world: World, rates_in_redis: Callable[..., "FeatureStore"], answers: str
) -> None:
    write_rates(tmp_path, {1: 0.5})
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        address = f"127.0.0.1:{hole.getsockname()[1]}"
        if answers == "no TLS":
            address = f"{world.redis.host}:{world.redis.port},ssl=true"
        store = rates_in_redis(f'{{type: redis, connection_string: "{address}"}}')
        began = time.monotonic()
        with pytest.raises(
            NotMaterialized, match=r"'rates': the online store did not respond .*its address, password and"
        ):
            materialize_online_store(store, NOW)
    assert time.monotonic() - began < 3 * REDIS_TIMEOUT_S
