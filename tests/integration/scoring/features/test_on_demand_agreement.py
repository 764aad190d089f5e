"""The functions of on-demand views get the same values in a batch run as online, and so give the same."""

import contextlib
import datetime as dt
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.join import PointInTimeJoin
from scoring.errors import EntityRowsError, FeatureStoreError, UnusableFeature
from scoring.features.feature_service import link_features
from scoring.features.model_features import ModelFeatures
from scoring.imports import inside
from scoring.online.feast_reader import FeastReader
from scoring.online.lookup import fastest_lookup, read_online_vectors, read_rows
from scoring.online.reading import StoreRead
from scoring.online.shared_lookup import SharedLookup
from tests.support.feature_repository import open_repository, write_definitions
from tests.support.servers import RedisServer

DEFINITIONS = """
from datetime import timedelta
from typing import Any
import zlib
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT32)
stats = FeatureView(
    name="stats", entities=[shop], ttl=timedelta(0),
    schema=[Field(name="f4", dtype=Float32), Field(name="f8", dtype=Float64), Field(name="i4", dtype=Int32),
            Field(name="i8", dtype=Int64), Field(name="flag", dtype=Bool), Field(name="text", dtype=String)],
    source=FileSource(path="data/stats.parquet", timestamp_field="event_timestamp"),
)
place = FeatureView(
    name="place", entities=[shop], ttl=timedelta(0),
    schema=[Field(name="f4", dtype=Float32), Field(name="since", dtype=UnixTimestamp)],
    source=FileSource(path="data/place.parquet", timestamp_field="event_timestamp"),
)
brief = FeatureView(
    name="brief", entities=[shop], ttl=timedelta(hours=3), schema=[Field(name="number", dtype=Int64)],
    source=FileSource(path="data/brief.parquet", timestamp_field="event_timestamp"),
)
basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float32), Field(name="pieces", dtype=Int32)])

received = [Field(name="received", dtype=String)]

@on_demand_feature_view(sources=[stats, basket], mode="pandas", schema=received)
def frames(inputs: pd.DataFrame) -> pd.DataFrame:
    names = ["f4", "f8", "i4", "i8", "flag", "text", "amount", "pieces", "shop_id", "stats__f4"]
    seen = inputs[[name for name in names if name in inputs]]  # Feast tries it without keys
    rows = [" ".join(f"{value!r}" for value in row) for row in seen.itertuples(index=False, name=None)]
    kinds = "" if inputs.isna().any(axis=None) else str(seen.dtypes.tolist())  # a null changes them
    return pd.DataFrame({"received": [f"{row} {kinds}" for row in rows]})

@on_demand_feature_view(sources=[stats, basket], mode="python", schema=received)
def values(inputs: dict[str, Any]) -> dict[str, Any]:
    names = ["f4", "f8", "i4", "i8", "flag", "text", "amount", "pieces", "shop_id", "stats__f4"]
    return {"received": [f"{row!r}" for row in zip(*(inputs[name] for name in names if name in inputs))]}

@on_demand_feature_view(sources=[stats, basket], mode="python", singleton=True, schema=received)
def one_by_one(inputs: dict[str, Any]) -> dict[str, Any]:
    names = ["f4", "f8", "i4", "i8", "flag", "text", "amount", "pieces", "shop_id", "stats__f4"]
    return {"received": repr([inputs[name] for name in names if name in inputs])}

@on_demand_feature_view(
    sources=[stats], mode="pandas",
    schema=[Field(name="product", dtype=Int64), Field(name="ratio", dtype=Float64), Field(name="part", dtype=Float64)],
)
def computed(inputs: pd.DataFrame) -> pd.DataFrame:
    result = pd.DataFrame()
    result["product"] = inputs["i4"] * 3
    result["ratio"] = inputs["f4"] / 3 * inputs["f8"]
    result["part"] = inputs["f8"] / 7
    return result

@on_demand_feature_view(sources=[stats, place], mode="python", schema=[Field(name="age", dtype=String)])
def moments(inputs: dict[str, Any]) -> dict[str, Any]:
    names = ("since", "place__f4", "stats__f4")
    return {"age": [repr(row) for row in zip(*(inputs[name] for name in names))]}

@on_demand_feature_view(sources=[place], mode="python", schema=[Field(name="received", dtype=String)])
def prying(inputs: dict[str, Any]) -> dict[str, Any]:
    foreign = sorted({"text", "stats__text", "frames__received"} & inputs.keys())
    return {"received": [str(foreign) for _ in inputs["place__f4"]]}

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="received", dtype=String)])
def fewer(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"received": ["one"]})

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="received", dtype=String)])
def backwards(inputs: pd.DataFrame) -> pd.DataFrame:
    return inputs.sort_values("text", ascending=False)[["text"]].rename(columns={"text": "received"})

@on_demand_feature_view(sources=[stats], mode="python", schema=[Field(name="received", dtype=String)])
def other(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"received" if len(inputs["text"]) == 1 else "other": inputs["text"]}

visit = RequestSource(name="visit", schema=[Field(name="at", dtype=UnixTimestamp)])

@on_demand_feature_view(sources=[stats[["f8"]], visit], mode="python", schema=received)
def named(inputs: dict[str, Any]) -> dict[str, Any]:
    rows = zip(*inputs.values())
    return {"received": [f"{sorted(inputs)} {row}" for row in rows]}

@on_demand_feature_view(sources=[brief], mode="pandas", schema=[Field(name="next", dtype=Int64)])
def following(inputs: pd.DataFrame) -> pd.DataFrame:
    return (inputs["number"] + 1).astype("Int64").to_frame("next")

@on_demand_feature_view(sources=[stats], mode="python", schema=received)
def broken(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"received": [f"{1 / (value != value)}" if len(inputs["text"]) > 1 else "x" for value in inputs["text"]]}

@on_demand_feature_view(sources=[stats], mode="python", schema=received)
def lost(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"received": [zlib.compress(value.encode()).hex() for value in inputs["text"]]}

named_service = FeatureService(name="named", features=[stats, named.with_name("called"), broken])
following_service = FeatureService(name="following", features=[brief, following])
lost_service = FeatureService(name="lost", features=[stats, lost])
frames_service = FeatureService(name="frames", features=[stats, frames])
values_service = FeatureService(name="values", features=[stats[["f8"]], values])
one_by_one_service = FeatureService(name="one_by_one", features=[stats[["f8"]], one_by_one])
computed_service = FeatureService(name="computed", features=[stats[["text"]], computed])
moments_service = FeatureService(name="moments", features=[stats[["f4"]], place[["f4"]], moments, computed])
prying_service = FeatureService(name="prying", features=[stats, place, prying, frames])
fewer_service = FeatureService(name="fewer", features=[stats, fewer])
backwards_service = FeatureService(name="backwards", features=[stats, backwards])
other_service = FeatureService(name="other", features=[stats, other])
"""
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
SHOPS = [1, 2, 3, 4, 5, -6]
EMPTY, UNKNOWN = 9, 99  # a shop that has a row of nothing but nulls, and one that has none
TYPES = dict.fromkeys(("received", "prying__received", "called__received", "age"), pa.string()) | dict.fromkeys(
    ("ratio", "part"), pa.float64()
)
TYPES |= {"product": pa.int64(), "next": pa.int64()}


class World:
    """A repository with an online store of each kind, filled, and the same rows offline."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.folder = folder
        write_definitions(folder, DEFINITIONS)
        moment = pa.array([NOW - dt.timedelta(hours=1)] * (len(SHOPS) + 1), pa.timestamp("us", "UTC"))
        stats = {
            "shop_id": pa.array([*SHOPS, EMPTY], pa.int32()),
            "event_timestamp": moment,
            # What the source has is wider, or narrower, than what the view declares.
            "f4": pa.array([0.1, 1 / 3, float("nan"), 16777217.0, float("inf"), -0.0, None], pa.float64()),
            "f8": pa.array([3, 0, 2**40, None, 7, -1, None], pa.int64()),
            "i4": pa.array([2**31 - 1, -(2**31), 0, 5, None, 1, None], pa.int64()),
            "i8": pa.array([2**31 - 1, 1, None, 0, -1, 7, None], pa.int32()),
            "flag": pa.array([True, False, None, True, False, True, None]),
            "text": pa.array(["", "é", None, "a b", "'", "x", None]),
        }
        place = {
            "shop_id": pa.array([*SHOPS, EMPTY], pa.int32()),
            "event_timestamp": moment,
            "f4": pa.array([0.7, 0.2, None, 0.4, 1e30, 0.6, None], pa.float64()),
            "since": pa.array([1_700_000_000_999_999, 1, -1_500_000, None, 0, 86_400_000_000, None], moment.type),
        }
        pq.write_table(pa.table(stats), folder / "data" / "stats.parquet")
        pq.write_table(pa.table(place), folder / "data" / "place.parquet")
        ages = [1, 9, 1, 1, 1, 1, 1]  # hours: of the second shop too old
        brief = {
            "shop_id": stats["shop_id"],
            "event_timestamp": pa.array([NOW - dt.timedelta(hours=age) for age in ages], moment.type),
            "number": pa.array([2**53 + 1, 5, 6, 4, 7, 8, 9]),
        }
        pq.write_table(pa.table(brief), folder / "data" / "brief.parquet")
        online = f'{{type: redis, connection_string: "{redis.host}:{redis.port},db=3"}}'
        self.stores = {
            "sqlite": open_repository(folder, "sqlite"),
            "redis": open_repository(folder, "redis", online=online, offline="duckdb"),
            "feast": open_repository(folder, "feast", online=online, bulk=False),
        }
        for store in self.stores.values():
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), inside(folder):
                store.materialize(NOW - dt.timedelta(days=1), NOW)

    def link(self, kind: str, service: str, *inputs: str) -> ModelFeatures:
        signature = Signature(tuple(ModelInput(name, TYPES[name]) for name in inputs))
        return link_features(self.stores[kind], "m/1", service, signature, ())

    def batch(self, kind: str, features: ModelFeatures, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        types = {"shop_id": pa.int32(), "amount": pa.float32(), "pieces": pa.int32(), "at": pa.timestamp("us", "UTC")}
        table = pa.table({name: pa.array(values, types[name]) for name, values in rows.items()})
        moments = pa.array([NOW] * table.num_rows, pa.timestamp("us", "UTC"))
        file = self.folder / "data" / "request.parquet"
        pq.write_table(table.append_column("event_timestamp", moments), file)
        joined = pa.concat_tables(PointInTimeJoin(self.stores[kind], features, file).tables())
        return joined.select(list(features.signature.names)).to_pydict()

    def online(self, kind: str, features: ModelFeatures, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        lookup = fastest_lookup(self.stores[kind], features)
        assert kind != "feast" or isinstance(lookup.stored, FeastReader)
        return read_online_vectors(lookup, features, rows, NOW).vectors.to_pydict()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> World:
    return World(tmp_path_factory.mktemp("agreement"), redis_server)


ASKED = {"shop_id": SHOPS, "amount": [0.1, 2.5, None, 1e30, 0.0, 16777217.0], "pieces": [1, None, 3, 4, 5, 6]}
ONE = {"shop_id": [2], "amount": [0.3], "pieces": [9]}
COMPLETE = {"shop_id": [1, 2, -6], "amount": [0.1, 0.2, 0.3], "pieces": [1, 2, 3]}


@pytest.mark.parametrize("rows", [ASKED, ONE, COMPLETE], ids=["nulls", "one", "complete"])
@pytest.mark.parametrize("kind", ["sqlite", "redis", "feast"])
@pytest.mark.parametrize("service", ["frames", "values", "one_by_one"])
def test_a_function_is_given_the_same_in_batch_and_online(world, service, kind, rows):
    features = world.link(kind, service, "received")
    batch = world.batch(kind, features, rows)
    assert batch == world.online(kind, features, rows)
    assert all(received is not None and len(received) > 20 for received in batch["received"])


@pytest.mark.parametrize("kind", ["sqlite", "redis", "feast"])
def test_on_demand_features_agree_to_the_last_bit(world, kind):
    for rows in ({"shop_id": SHOPS}, {"shop_id": [1]}, {"shop_id": [4, 1]}, {"shop_id": [3]}):
        features = world.link(kind, "computed", "product", "ratio", "part")
        batch = world.batch(kind, features, rows)
        assert repr(batch) == repr(world.online(kind, features, rows))


@pytest.mark.parametrize("kind", ["sqlite", "redis", "feast"])
def test_two_views_with_features_of_one_name_and_moments_agree(world, kind):
    features = world.link(kind, "moments", "age", "ratio")
    batch = world.batch(kind, features, {"shop_id": SHOPS})
    assert batch == world.online(kind, features, {"shop_id": SHOPS})
    first = dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    narrow = [pa.scalar(value, pa.float32()).as_py() for value in (0.7, 0.1)]
    assert repr(batch["age"][0]).count(str(narrow[0])) == 1
    assert str(narrow[1]) in batch["age"][0]
    assert f"{first.year}, {first.month}, {first.day}, {first.hour}, {first.minute}, {first.second}," in batch["age"][0]


@pytest.mark.parametrize("kind", ["sqlite", "redis", "feast"])
@pytest.mark.parametrize("other", [("computed", "product", "ratio", "part"), ("moments", "age", "ratio")])
def test_vectors_are_the_same_if_some_features_were_read_for_another_version(world, kind, other):
    store, rows = world.stores[kind], {"shop_id": [*SHOPS, EMPTY, UNKNOWN]}
    features, of_other = world.link(kind, "moments", "age", "ratio"), world.link(kind, *other)
    read = read_online_vectors(fastest_lookup(store, of_other), of_other, rows, NOW).read
    lookup = SharedLookup(store, features, of_other, list(read.columns))
    half = len(SHOPS) // 2
    shared, changed = lookup.vectors([read.slice(0, half), read.slice(half, 99)], rows, NOW.timestamp())
    alone = read_online_vectors(fastest_lookup(store, features), features, rows, NOW)
    assert shared.vectors.to_pydict() == alone.vectors.to_pydict()
    assert shared.reasons == alone.reasons
    assert not changed.any()
    missing = set() if lookup._extra is None else set(lookup._extra.read(rows).columns)
    assert missing == set(alone.read.columns) - set(read.columns) - {"moments:age"}  # which is computed


def test_rows_are_reported_whose_missing_features_are_not_of_the_time_at_which_the_others_were_read(world):
    store, rows = world.stores["sqlite"], {"shop_id": [*SHOPS, EMPTY, UNKNOWN]}
    features, other = world.link("sqlite", "moments", "age", "ratio"), world.link("sqlite", "computed", "ratio")
    read = read_online_vectors(fastest_lookup(store, other), other, rows, NOW).read

    def changed(columns: set[str], now: dt.datetime, stats: np.ndarray) -> list[bool]:
        before = StoreRead(read.event_s | {"stats": stats}, read.columns)
        lookup = SharedLookup(store, features, other, list(columns))
        return lookup.vectors([before], rows, now.timestamp())[1].tolist()

    columns, stats = set(read.columns), read.event_s["stats"]
    assert changed(columns, NOW, stats) == [False] * 8
    assert changed(columns, NOW - dt.timedelta(hours=2), stats) == [True] * 7 + [False]  # `place` is newer
    older = np.where(np.arange(8) == 3, stats - 1, stats)
    assert changed(columns, NOW, older) == [False] * 8  # nothing of `stats` is read again
    assert changed(columns - {"stats:f8"}, NOW, older) == [place == 3 for place in range(8)]


def test_a_row_of_nothing_but_nulls_is_a_row_to_a_function_and_none_is_none(world):
    features = world.link("sqlite", "values", "received")
    rows = {"shop_id": [EMPTY, UNKNOWN, 1], "amount": [0.5] * 3, "pieces": [1] * 3}
    batch = world.batch("sqlite", features, rows)
    assert batch == world.online("sqlite", features, rows)
    assert [received is None for received in batch["received"]] == [False, True, False]


@pytest.mark.parametrize("kind", ["sqlite", "redis", "feast"])
def test_a_function_gets_the_keys_and_what_its_view_names_and_nothing_else(world, kind):
    features = world.link(kind, "named", "called__received")
    rows = {"shop_id": [1, 2], "at": [NOW.replace(microsecond=999_999), None]}
    batch = world.batch(kind, features, rows)
    assert repr(batch) == repr(world.online(kind, features, rows))
    assert batch["called__received"][0].startswith("['at', 'f8', 'shop_id', 'stats__f8'] (")
    assert str(NOW.replace(tzinfo=None).year) in batch["called__received"][0]
    assert "999999" not in batch["called__received"][0]


def test_a_moment_that_no_batch_request_may_have_is_refused_online_too(world):
    features = world.link("sqlite", "named", "called__received")
    for year in (1, 1677, 2262, 9999):
        with pytest.raises(EntityRowsError, match="'at': dates and times between 1678 and 2261 are needed"):
            world.online("sqlite", features, {"shop_id": [1], "at": [dt.datetime(year, 6, 1, tzinfo=dt.UTC)]})


@pytest.mark.parametrize("kind", ["sqlite", "redis", "feast"])
def test_a_row_past_its_time_to_live_changes_nothing_beside_it(world, kind):
    features = world.link(kind, "following", "next")
    for shops in ([1], [1, 2], [2, 1, 99], [1, 3]):
        batch = world.batch(kind, features, {"shop_id": shops})
        assert batch == world.online(kind, features, {"shop_id": shops})


def test_a_version_whose_function_lacks_what_its_module_imported_is_refused_when_it_is_loaded(world):
    features = world.link("sqlite", "lost", "received")
    with pytest.raises(FeatureStoreError, match="of on-demand view 'lost' can't be run: NameError: name 'zlib'"):
        fastest_lookup(world.stores["sqlite"], features)
    with pytest.raises(FeatureStoreError, match="the function of on-demand view 'lost' raised NameError: name 'zlib'"):
        world.batch("sqlite", features, {"shop_id": SHOPS[3:]})


@pytest.mark.parametrize("way", ["batch", "online"])
@pytest.mark.parametrize(
    ("service", "says"),
    [
        ("fewer", "returned 1 rows for 6|ValueError"),
        ("backwards", "in a different order|ValueError"),
        ("other", "no 'received'|ValueError"),
    ],
)
def test_a_function_that_returns_something_else_than_it_declares_ends_both(world, service, says, way):
    features = world.link("sqlite", service, "received")
    with pytest.raises(FeatureStoreError, match=says):
        getattr(world, way)("sqlite", features, {"shop_id": SHOPS})


def test_a_function_sees_no_feature_of_a_view_that_it_does_not_name(world):
    features = world.link("sqlite", "prying", "prying__received")
    batch = world.batch("sqlite", features, ASKED)
    assert batch == world.online("sqlite", features, ASKED) == {"prying__received": ["[]"] * len(SHOPS)}


def test_whether_the_store_answers_is_asked_without_any_function(world):
    features = world.link("sqlite", "fewer", "received")
    lookup = fastest_lookup(world.stores["sqlite"], features)
    with pytest.raises(UnusableFeature):
        read_online_vectors(lookup, features, {"shop_id": [1, 2]}, NOW)
    assert read_rows(lookup.stored, {"shop_id": [1, 2]}).columns["stats:text"].to_pylist() == ["", "é"]
