"""The ASOF offline store answers as Feast's duckdb store does, in the request's order, and streams."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoring.errors import UnreadableSource
from scoring.feast_plugins.offline_query import AsofRetrievalJob
from scoring.feast_plugins.offline_sql import Join
from scoring.imports import inside
from tests.support.feature_repository import ASOF, open_repository, write_definitions

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Float64, Int32, String

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
buyer = Entity(name="buyer", join_keys=["buyer"], value_type=ValueType.STRING)
stats = FeatureView(
    name="stats", entities=[shop], ttl=timedelta(hours=3),
    schema=[Field(name="rate", dtype=Float32), Field(name="orders", dtype=Int32)],
    source=FileSource(
        name="stats_source", path="data/stats.parquet", timestamp_field="seen_at", created_timestamp_column="made_at",
        field_mapping={"rate_raw": "rate", "at": "seen_at"},
    ),
)
loyalty = FeatureView(
    name="loyalty", entities=[shop, buyer], ttl=timedelta(0),
    schema=[Field(name="visits", dtype=Float64), Field(name="member", dtype=Bool), Field(name="tier", dtype=String)],
    source=FileSource(name="loyalty_source", path="data/loyalty.parquet", timestamp_field="event_timestamp"),
)
both = FeatureService(name="both", features=[stats, loyalty[["tier", "visits"]]])
mapped = FeatureService(
    name="mapped",
    features=[stats.with_name("pickup").with_join_key_map({"shop_id": "from_shop"}),
              stats[["rate"]].with_name("dropoff").with_join_key_map({"shop_id": "to_shop"})],
)
"""
START = datetime(2026, 1, 1, tzinfo=UTC)

hours = st.integers(0, 9).map(lambda hour: START + timedelta(hours=hour))
half_hours = st.integers(0, 20).map(lambda half: START + timedelta(minutes=30 * half))
shops = st.integers(1, 3)
buyers = st.sampled_from(["ann", "b'o\"b", ""])
number = st.none() | st.floats(-10, 10, width=32)


def one_row_each(rows: list[tuple[Any, ...]], keys: int) -> list[tuple[Any, ...]]:
    """Rows whose first `keys` values differ: among equals either store may take any."""
    return list({row[:keys]: row for row in rows}.values())


stats_rows = st.lists(st.tuples(shops, hours, hours, number, st.none() | st.integers(0, 9))).map(
    lambda rows: one_row_each(rows, 3)
)
loyalty_rows = st.lists(st.tuples(shops, buyers, hours, number, st.none() | st.booleans(), st.none() | buyers)).map(
    lambda rows: one_row_each(rows, 3)
)
entity_rows = st.lists(st.tuples(shops, buyers, shops, half_hours), min_size=1, max_size=12)


class World:
    """One set of definitions and data, with a Feast store of each kind over it."""

    def __init__(self, folder: Path) -> None:
        self.repo = folder
        write_definitions(folder, DEFINITIONS)
        self.write([(1, START, START, 0.5, 1)], [(1, "ann", START, 1.0, True, "x")])
        stores = {"asof": ASOF, "duckdb": "duckdb"}
        self.stores = {name: open_repository(folder, name, offline=kind) for name, kind in stores.items()}

    def write(self, stats: list[tuple[Any, ...]], loyalty: list[tuple[Any, ...]]) -> None:
        moment = pa.timestamp("us", "UTC")
        self._write(
            "stats", stats, shop_id=pa.int64(), at=moment, made_at=moment, rate_raw=pa.float32(), orders=pa.int32()
        )
        self._write(
            "loyalty", loyalty, shop_id=pa.int64(), buyer=pa.string(), event_timestamp=moment, visits=pa.float64(),
            member=pa.bool_(), tier=pa.string(),
        )  # fmt: skip

    def _write(self, name: str, rows: list[tuple[Any, ...]], **types: pa.DataType) -> None:
        columns = list(zip(*rows, strict=True)) if rows else [[]] * len(types)
        arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types.values(), strict=True)]
        pq.write_table(pa.table(arrays, names=list(types)), self.repo / "data" / f"{name}.parquet")

    def ask(self, kind: str, service: str, rows: pd.DataFrame, full_feature_names: bool = True) -> pd.DataFrame:
        store = self.stores[kind]
        with inside(self.repo):
            return store.get_historical_features(rows, store.get_feature_service(service), full_feature_names).to_df()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("offline"))


def frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["shop_id", "buyer", "to_shop", "event_timestamp"])
    table["event_timestamp"] = table["event_timestamp"].astype("datetime64[us, UTC]")
    return table.assign(from_shop=table["shop_id"], row=range(len(table)))


@pytest.mark.parametrize("service", ["both", "mapped"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stats=stats_rows, loyalty=loyalty_rows, entities=entity_rows, full=st.booleans())
def test_equal_to_feasts_duckdb_store_but_in_the_requests_order(
    world: World, service: str, stats: list[Any], loyalty: list[Any], entities: list[Any], full: bool
) -> None:
    world.write(stats, loyalty)
    full = full or service == "mapped"  # two projections of one view need full names
    ours = world.ask("asof", service, frame(entities), full)
    theirs = world.ask("duckdb", service, frame(entities), full)
    assert ours["row"].tolist() == list(range(len(entities)))
    theirs = theirs.sort_values("row", ignore_index=True)
    pd.testing.assert_frame_equal(ours, theirs[ours.columns], check_dtype=False)


def test_an_entity_row_without_a_key_has_no_features(world: World) -> None:
    world.write([(1, START, START, 0.5, 1)], [])
    rows = frame([(1, "ann", 1, START), (1, "ann", 1, START)])
    rows["shop_id"] = pd.array([1, None], "Int64")
    assert world.ask("asof", "both", rows)["stats__orders"].fillna(-1).tolist() == [1, -1]


def test_nanosecond_sources_and_naive_times_are_utc(world: World) -> None:
    naive = pa.table(
        {
            "shop_id": [1],
            "at": pa.array([START.replace(tzinfo=None)], pa.timestamp("ns")),
            "made_at": pa.array([START], pa.timestamp("ns", "UTC")),
            "rate_raw": pa.array([0.5], pa.float32()),
            "orders": pa.array([7], pa.int32()),
        }
    )
    pq.write_table(naive, world.repo / "data" / "stats.parquet")
    rows = frame([(1, "ann", 1, START), (1, "ann", 1, START - timedelta(seconds=1))])
    assert world.ask("asof", "both", rows)["stats__orders"].fillna(-1).tolist() == [7, -1]


def test_a_query_as_entity_rows_keeps_its_order_and_streams(world: World, tmp_path: Path) -> None:
    world.write([(shop, START, START, shop / 2, shop) for shop in (1, 2, 3)], [])
    count = 300_000
    shops_asked = [1 + i % 4 for i in range(count)]
    pq.write_table(
        pa.table({"shop_id": shops_asked, "buyer": ["ann"] * count, "event_timestamp": pa.array([START] * count)}),
        tmp_path / "rows.parquet",
    )
    store = world.stores["asof"]
    query = f"SELECT * FROM read_parquet('{tmp_path / 'rows.parquet'}')"
    job = store.get_historical_features(query, store.get_feature_service("both"), True)
    assert isinstance(job, AsofRetrievalJob)
    batches = list(job.to_batches())
    assert len(batches) > 1
    joined = pa.Table.from_batches(batches)
    assert joined["shop_id"].to_pylist() == shops_asked
    assert joined["stats:orders"].to_pylist() == [shop if shop < 4 else None for shop in shops_asked]


def test_a_cutoff_by_created_timestamp_is_left_to_feasts_own_store(world: World) -> None:
    world.write([(1, START, START + timedelta(hours=2), 0.5, 1)], [(1, "ann", START, 1.0, True, "x")])
    rows = frame([(1, "ann", 1, START + timedelta(hours=1)), (1, "ann", 1, START + timedelta(hours=2))])
    store = world.stores["asof"]
    with inside(world.repo):
        job = store.get_historical_features(
            rows, store.get_feature_service("both"), True, filter_by_created_timestamp=True
        )
        seen = job.to_df().sort_values("row")
    assert seen["stats__orders"].fillna(-1).tolist() == [-1, 1]


def join_of(folder: Path, rows: pa.Table, *features: str, created: str = "") -> Join:
    """A view over one file with these features."""
    pq.write_table(rows, folder / "odd.parquet")
    source = FileSource(
        path=str(folder / "odd.parquet"), timestamp_field="event_timestamp", created_timestamp_column=created
    )
    return Join("odd", source, {"shop_id": "shop_id"}, {name: f"odd__{name}" for name in features}, None)


def joined(world: World, join: Join) -> dict[str, list[Any]]:
    asked = pd.DataFrame({"shop_id": [1], "event_timestamp": pd.to_datetime([START], utc=True)})
    job = AsofRetrievalJob(world.stores["asof"].config, asked, [join], [], [], full_feature_names=True)
    return {name: column for name, column in job.to_arrow().to_pydict().items() if name.startswith("odd__")}


ROW = {"shop_id": [1], "event_timestamp": pa.array([START], pa.timestamp("us", "UTC"))}


def test_a_feature_may_have_the_name_of_anything_in_the_query(world: World, tmp_path: Path) -> None:
    names = ("feature_time", "key shop_id", "feature 0", "odd is stale")
    rows = pa.table(ROW | {name: [place] for place, name in enumerate(names)})
    found = joined(world, join_of(tmp_path, rows, *names))
    assert found == {f"odd__{name}": [place] for place, name in enumerate(names)}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (("Rate",), r"odd\.parquet': it has no column 'rate'; it has .*Rate"),
        (("Rate", "rate"), r"odd\.parquet has columns whose names are equal or differ only in case \(Rate, rate\)"),
    ],
)
def test_a_column_that_differs_in_case_is_not_taken_for_the_feature(
    world: World, tmp_path: Path, columns: tuple[str, ...], says: str
) -> None:
    rows = pa.table(ROW | {name: [0.5] for name in columns})
    with pytest.raises(UnreadableSource, match=says):
        joined(world, join_of(tmp_path, rows, "rate"))


def test_of_rows_that_differ_in_their_features_alone_it_is_the_same_one_in_any_order(
    world: World, tmp_path: Path
) -> None:
    found = []
    for rates in ([0.3, 0.1, 0.2], [0.1, 0.2, 0.3], [0.2, 0.3, 0.1]):
        rows = {name: pa.concat_arrays([pa.array(column)] * 3) for name, column in ROW.items()}
        rows |= {"made": rows["event_timestamp"], "rate": pa.array(rates)}
        found.append(joined(world, join_of(tmp_path, pa.table(rows), "rate", created="made")))
    assert found == [{"odd__rate": [0.1]}] * 3
