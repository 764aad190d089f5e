"""Everyone is each entity for which the point-in-time join finds a row, in a file that is scored as any other."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.everyone import everyone_file, read_as_of, write_everyone
from scoring.batch.join import joins_in_place
from scoring.batch.request import read_batch_request
from scoring.errors import ArgumentError, BatchRequestError, FeatureStoreError
from scoring.feast_plugins.offline_query import AsofRetrievalJob
from scoring.feast_plugins.offline_sql import found_mark, literal
from scoring.features.feature_service import link_features
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.imports import inside
from tests.support.feature_repository import open_repository, write_definitions

DEFINITIONS = """
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT32)
buyer = Entity(name="buyer", join_keys=["buyer"], value_type=ValueType.STRING)

def view(name, entities, hours):
    source = FileSource(
        name=f"{name}_source", path=f"data/{name}.parquet", timestamp_field="seen_at",
        created_timestamp_column="made_at", field_mapping={"at": "seen_at", "shop": "shop_id"},
    )
    schema = [Field(name=name[0], dtype=Float64)]
    return FeatureView(name=name, entities=entities, ttl=timedelta(hours=hours), schema=schema, source=source)

visits, orders, shops = view("visits", [shop, buyer], 3), view("orders", [shop, buyer], 0), view("shops", [shop], 1)
amount = RequestSource(name="amount", schema=[Field(name="amount", dtype=Float64)])

@on_demand_feature_view(sources=[visits], mode="pandas", schema=[Field(name="twice", dtype=Float64)])
def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
    return (inputs["v"] * 2).to_frame("twice")

@on_demand_feature_view(sources=[visits, amount], mode="pandas", schema=[Field(name="spent", dtype=Float64)])
def spending(inputs: pd.DataFrame) -> pd.DataFrame:
    return (inputs["v"] * inputs["amount"]).to_frame("spent")

all_views = FeatureService(name="all_views", features=[visits, doubled, shops, orders])
mapped = FeatureService(
    name="mapped",
    features=[visits.with_join_key_map({"shop_id": "from_shop"}),
              orders.with_name("o").with_join_key_map({"shop_id": "from_shop"})],
)
apart = FeatureService(name="apart", features=[shops.with_join_key_map({"shop_id": "from_shop"}), orders])
requested = FeatureService(name="requested", features=[visits, spending])
"""
START = datetime(2026, 1, 1, tzinfo=UTC)
SHOPS, BUYERS = [1, 2, 2**31 - 1], ["ann", "b'o\"b", ""]
INPUTS = {"all_views": ["v", "twice", "s"], "mapped": ["v", "o"], "apart": ["s", "o"], "requested": ["v", "spent"]}

times = st.integers(0, 12).map(lambda half: START + timedelta(minutes=30 * half))
rows = st.lists(
    st.tuples(st.none() | st.sampled_from(SHOPS), st.none() | st.sampled_from(BUYERS), times, st.none() | st.just(1.0)),
    max_size=8,
)


class Everyone:
    """A repository, whose three sources are written anew for each example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_definitions(folder, DEFINITIONS)
        self.write([], [], [])
        self.store = open_repository(folder)

    def write(self, *sources: list[tuple[Any, ...]]) -> None:
        time = pa.timestamp("us", "UTC")
        types = {"shop": pa.int64(), "buyer": pa.string(), "at": time, "v": pa.float64()}
        for name, rows in zip(("visits", "orders", "shops"), sources, strict=True):
            columns = list(zip(*rows, strict=True)) if rows else [[]] * len(types)
            arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types.values(), strict=True)]
            table = pa.table([*arrays, arrays[2]], names=["shop", "buyer", "at", name[0], "made_at"])
            pq.write_table(table, self.folder / "data" / f"{name}.parquet")

    def features(self, service: str) -> ModelFeatures:
        inputs = Signature(tuple(ModelInput(name, pa.float64()) for name in INPUTS[service]))
        return link_features(self.store, "m/1", service, inputs, ())

    def listed(self, features: ModelFeatures, as_of: datetime, store: Any = None) -> list[tuple[Any, ...]]:
        file = self.folder / "everyone.parquet"
        file.unlink(missing_ok=True)
        try:
            count = write_everyone(store or self.store, features, as_of, Location(file))
        except BatchRequestError:
            assert not file.exists()
            return []
        assert joins_in_place(file, features)
        (_, *tables) = [None, *read_batch_request(file, features)]
        table = pa.concat_tables(tables)
        assert table.num_rows == count
        assert set(table["event_timestamp"].to_pylist()) == {as_of}
        return sorted(tuple(row[key.name] for key in features.join_keys) for row in table.to_pylist())

    def found(self, features: ModelFeatures, as_of: datetime, views: list[str]) -> list[tuple[Any, ...]]:
        """The combinations of all keys for which the join of this time finds a row of one of the views."""
        every = [(shop, buyer) for shop in sorted(SHOPS) for buyer in sorted(BUYERS)]
        names = ", ".join(key.name for key in features.join_keys)
        values = ", ".join(f"({shop}, {literal(buyer)})" for shop, buyer in every)
        time = f"TIMESTAMPTZ {literal(as_of.isoformat())} AS event_timestamp"
        query = f"SELECT *, {time} FROM (VALUES {values}) AS e({names})"
        with inside(self.folder):
            job = self.store.get_historical_features(query, features.feast.service, True)
        assert isinstance(job, AsofRetrievalJob)
        job.mark_found()
        joined = pa.Table.from_batches(job.to_batches()).to_pylist()
        return [keys for keys, row in zip(every, joined, strict=True) if any(row[found_mark(view)] for view in views)]


@pytest.fixture(scope="module")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> Everyone:
    return Everyone(tmp_path_factory.mktemp("everyone"))


@settings(max_examples=15)
@given(visits=rows, orders=rows, shops=rows, as_of=times)
def test_everyone_is_each_entity_for_which_the_join_finds_a_row_within_its_time_to_live(
    everyone: Everyone, visits: list[Any], orders: list[Any], shops: list[Any], as_of: datetime
) -> None:
    everyone.write(visits, orders, shops)
    # In the first service, the model does not read `orders`, and `shops` has only one of the keys.
    for service, views in {"all_views": ["visits"], "mapped": ["visits", "o"]}.items():
        features = everyone.features(service)
        assert everyone.listed(features, as_of) == everyone.found(features, as_of, views)


def write_few(everyone: Everyone) -> None:
    seen = [
        (1, "ann", START, 1.0),
        (1, "ann", START + timedelta(hours=2), 2.0),
        (2, "", START - timedelta(hours=2), 3.0),
    ]
    everyone.write(seen, [(2, "ann", START, 4.0), (None, "ann", START, 5.0)], [(2, None, START, 6.0)])


def test_feasts_retrieval_without_entity_rows_joins_the_features_of_everyone(everyone: Everyone) -> None:
    write_few(everyone)
    with inside(everyone.folder):
        service = everyone.store.get_feature_service("all_views")
        job = everyone.store.get_historical_features(features=service, start_date=START, end_date=START)
        rows = job.to_arrow().sort_by([("buyer", "ascending")]).to_pylist()
    kept = {"shop_id", "buyer", "event_timestamp", "v", "o", "s", "twice"}
    assert [{name: row[name] for name in kept} for row in rows] == [
        {"shop_id": 1, "buyer": "ann", "event_timestamp": START, "v": 1.0, "o": None, "s": None, "twice": 2.0},
        {"shop_id": 2, "buyer": "ann", "event_timestamp": START, "v": None, "o": 4.0, "s": 6.0, "twice": None},
    ]


def test_another_feast_store_that_retrieves_by_date_range_gives_the_same_entities(everyone: Everyone) -> None:
    write_few(everyone)
    theirs = open_repository(everyone.folder, "dask", offline="file")
    for service in ("all_views", "mapped"):
        features = everyone.features(service)
        for hours in (-3, 0, 2, 6):
            as_of = START + timedelta(hours=hours)
            assert everyone.listed(features, as_of, theirs) == everyone.listed(features, as_of)


@pytest.mark.parametrize(
    ("service", "says"),
    [
        ("requested", "the model needs amount from the request"),
        ("apart", r"no view of the model has all join keys \(from_shop, shop_id, buyer\)"),
    ],
)
def test_a_model_whose_entities_are_unknown_is_refused_and_nothing_is_written(
    everyone: Everyone, tmp_path: Path, service: str, says: str
) -> None:
    with pytest.raises(BatchRequestError, match=says):
        write_everyone(everyone.store, everyone.features(service), START, Location(tmp_path / "everyone.parquet"))
    assert not list(tmp_path.iterdir())


def test_a_feast_store_without_retrieval_by_date_range_is_named(everyone: Everyone, tmp_path: Path) -> None:
    theirs = open_repository(everyone.folder, "duckdb", offline="duckdb")
    with pytest.raises(FeatureStoreError, match="offline_store duckdb does not retrieve rows by date range"):
        write_everyone(theirs, everyone.features("all_views"), START, Location(tmp_path / "everyone.parquet"))


def test_a_request_for_everyone_is_named_by_its_time() -> None:
    names = {time: everyone_file(read_as_of(time)) for time in ("2026-11-30", "2026-11-30T09:30:00+02:00")}
    assert names == {
        "2026-11-30": "everyone-2026-11-30.parquet",
        "2026-11-30T09:30:00+02:00": "everyone-2026-11-30T073000.parquet",
    }
    assert len(everyone_file(read_as_of(None))) == len("everyone-2026-11-30.parquet")
    with pytest.raises(ArgumentError, match="The time 'yesterday' is not in ISO 8601"):
        read_as_of("yesterday")
    for time in ("2026-11-30T00:00:00.5", "1500-01-01", "0001-01-01T00:00+14:00"):
        with pytest.raises(ArgumentError, match=r"must be from 1678 until 2262, without fractions of a second\.$"):
            read_as_of(time)
