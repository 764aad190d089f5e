"""On-demand features of a request that streams are those that Feast computes of all rows at once."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.join import PointInTimeJoin
from scoring.batch.on_demand_blocks import CARRIED, ROWS_PER_BLOCK, with_on_demand_features
from scoring.feast_plugins.offline_query import AsofRetrievalJob
from scoring.features.feature_service import link_features
from scoring.features.model_features import feast_name
from scoring.features.on_demand_views import OnDemandViews
from scoring.imports import inside
from tests.support.feature_repository import open_repository, write_definitions

DEFINITIONS = """
from datetime import timedelta
from typing import Any
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[shop], ttl=timedelta(hours=3),
    schema=[Field(name="rate", dtype=Float32), Field(name="orders", dtype=Int32), Field(name="open", dtype=Bool)],
    source=FileSource(path="data/stats.parquet", timestamp_field="event_timestamp"),
)
place = FeatureView(
    name="place", entities=[shop], ttl=timedelta(0),
    schema=[Field(name="size", dtype=Float64), Field(name="floors", dtype=Int64), Field(name="city", dtype=String)],
    source=FileSource(path="data/place.parquet", timestamp_field="event_timestamp"),
)
basket = RequestSource(
    name="basket", schema=[Field(name="amount", dtype=Float64), Field(name="pieces", dtype=Int64)]
)

@on_demand_feature_view(
    sources=[stats, basket], mode="pandas",
    schema=[Field(name="expected", dtype=Float64), Field(name="many", dtype=Int64), Field(name="shut", dtype=Bool)],
)
def frames(inputs: pd.DataFrame) -> pd.DataFrame:
    result = pd.DataFrame()
    result["expected"] = inputs["rate"].astype("float64") * inputs["amount"]
    result["many"] = inputs["orders"] + inputs["pieces"].fillna(0)
    result["shut"] = inputs["open"].map({True: False, False: True})
    return result

@on_demand_feature_view(
    sources=[place, basket], mode="python",
    schema=[Field(name="a_floor", dtype=Float64), Field(name="label", dtype=String), Field(name="left", dtype=Int64)],
)
def values(inputs: dict[str, Any]) -> dict[str, Any]:
    pairs = list(zip(inputs["size"], inputs["floors"]))
    return {
        "a_floor": [None if size is None or not floors else size / floors for size, floors in pairs],
        "label": [f"{city} {floors}" for city, floors in zip(inputs["city"], inputs["floors"])],
        "left": [None if floors is None else floors - (many or 0)
                 for floors, many in zip(inputs["floors"], inputs["pieces"])],
    }

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="centred", dtype=Float64)])
def centred(inputs: pd.DataFrame) -> pd.DataFrame:
    return (inputs["rate"].astype("float64") - inputs["rate"].mean()).to_frame("centred")

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="guessed", dtype=Float64)])
def guessed(inputs: pd.DataFrame) -> pd.DataFrame:
    return inputs["rate"].astype("float64").fillna(inputs["rate"].mean()).to_frame("guessed")

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="of_shop", dtype=Float64)])
def grouped(inputs: pd.DataFrame) -> pd.DataFrame:
    rates = inputs["rate"].astype("float64")
    return rates.groupby(inputs.get("shop_id", inputs["orders"])).transform("mean").to_frame("of_shop")

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="before", dtype=Float64)])
def lagged(inputs: pd.DataFrame) -> pd.DataFrame:
    rates = inputs["rate"].astype("float64")
    return rates.groupby(inputs.get("shop_id", inputs["orders"])).shift().to_frame("before")

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="known", dtype=Float64)])
def repaired(inputs: pd.DataFrame) -> pd.DataFrame:
    rates = inputs["rate"].astype("float64")
    means = rates.groupby(inputs.get("shop_id", inputs["orders"])).transform("mean")
    return rates.fillna(means).to_frame("known")

@on_demand_feature_view(sources=[stats], mode="pandas", schema=[Field(name="text", dtype=String)])
def formatted(inputs: pd.DataFrame) -> pd.DataFrame:
    return inputs["orders"].map(lambda orders: f"{orders} orders").to_frame("text")

@on_demand_feature_view(sources=[stats], mode="python", schema=[Field(name="place", dtype=Int64)])
def ranked(inputs: dict[str, Any]) -> dict[str, Any]:
    rates = [0.0 if rate is None else rate for rate in inputs["rate"]]
    order = sorted(range(len(rates)), key=rates.__getitem__)
    return {"place": [place for _, place in sorted(zip(order, range(len(order))))]}

@on_demand_feature_view(sources=[stats, basket], mode="pandas", schema=[Field(name="late", dtype=Float64)])
def late(inputs: pd.DataFrame) -> pd.DataFrame:
    rates = inputs["rate"].astype("float64")
    return (rates - rates.mean() if (inputs["amount"] == 666).any() else rates).to_frame("late")

pandas_mode = FeatureService(name="pandas", features=[stats, frames])
python_mode = FeatureService(name="python", features=[place, values])
both = FeatureService(name="both", features=[stats[["rate"]], frames, values[["label", "left"]], place[["city"]]])
for view in (centred, guessed, grouped, lagged, repaired, formatted, ranked, late):
    globals()[f"{view.name}_service"] = FeatureService(name=view.name, features=[stats, view])
"""
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
SHOPS = 3000
# In turn, each shop comes once in a block of the tests.
ROWS, ROWS_IN_TESTS = 9000, 3000


class World:
    """A repository whose views have nulls, and requests of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_definitions(folder, DEFINITIONS)
        random = np.random.default_rng(5)
        shops = np.arange(SHOPS)
        # The upper half of the shops lacks values; the last third has none in time.
        lacks = (shops >= SHOPS // 2) & (random.random(SHOPS) < 0.3)
        stats = {
            "shop_id": shops,
            "event_timestamp": [NOW - dt.timedelta(hours=1 if shop < SHOPS * 2 // 3 else 9) for shop in shops],
            "rate": pa.array(random.random(SHOPS), pa.float32(), mask=lacks),
            "orders": pa.array(random.integers(0, 90, SHOPS), pa.int32(), mask=np.roll(lacks, 1)),
            "open": pa.array(random.random(SHOPS) < 0.5, mask=np.roll(lacks, 2)),
        }
        place = {
            "shop_id": shops,
            "event_timestamp": [NOW - dt.timedelta(days=9)] * SHOPS,
            "size": pa.array(random.random(SHOPS) * 100, mask=np.roll(lacks, 3)),
            "floors": pa.array(random.integers(0, 5, SHOPS), pa.int64(), mask=lacks),
            "city": pa.array(random.choice(["Rome", "Köln"], SHOPS), mask=np.roll(lacks, 4)),
        }
        pq.write_table(pa.table(stats), folder / "data" / "stats.parquet", coerce_timestamps="us")
        pq.write_table(pa.table(place), folder / "data" / "place.parquet", coerce_timestamps="us")
        self.store = open_repository(folder)

    def request(self, shops: np.ndarray, unlucky_row: int | None = None) -> Path:
        """A file of entity rows with request-time inputs that have nulls in the second half."""
        random = np.random.default_rng(len(shops))
        rows = np.arange(len(shops))
        amounts = random.random(len(shops)).round(2)
        if unlucky_row is not None:
            amounts[unlucky_row] = 666
        lacks = (rows > len(rows) // 2) & (rows % 5 == 0)
        table = {
            "shop_id": shops,
            "event_timestamp": pa.array([NOW] * len(shops), pa.timestamp("us", "UTC")),
            "amount": pa.array(amounts, mask=lacks),
            "pieces": pa.array(random.integers(0, 9, len(shops)), mask=lacks),
        }
        file = self.folder / "data" / "request.parquet"
        pq.write_table(pa.table(table), file)
        return file

    def ask(self, service: str, request: Path) -> AsofRetrievalJob:
        with inside(self.folder):
            query = f"SELECT * FROM read_parquet('{request}')"
            job = self.store.get_historical_features(query, self.store.get_feature_service(service), True)
        assert isinstance(job, AsofRetrievalJob)
        return job


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("on_demand"))


def shops_in_turn(rows: int = ROWS) -> np.ndarray:
    return np.arange(rows) % (SHOPS + 10)


def shops_that_lack_nothing_first(rows: int = ROWS) -> np.ndarray:
    return np.where(np.arange(rows) < rows * 0.6, np.arange(rows) % (SHOPS // 2), np.arange(rows) % (SHOPS + 10))


def unknown_shops_first(rows: int = ROWS) -> np.ndarray:
    return np.where(np.arange(rows) < rows * 0.6, -1, np.arange(rows) % (SHOPS // 2))


def typed_as_declared(job: AsofRetrievalJob, table: pa.Table) -> pa.Table:
    """Feast's answer with its on-demand features as the views declare them."""
    from feast.types import from_feast_to_pyarrow_type

    for view in job.on_demand_feature_views:
        for field in view.features:
            name = f"{view.name}__{field.name}"
            if name in table.column_names:
                place, kind = table.column_names.index(name), from_feast_to_pyarrow_type(field.dtype)
                table = table.set_column(place, name, table[name].cast(kind))
    return table


def assert_same(streamed: pa.Table, whole: pa.Table) -> None:
    assert streamed.schema.equals(whole.schema)
    pd.testing.assert_frame_equal(streamed.to_pandas(), whole.to_pandas(), check_exact=True)


@pytest.mark.parametrize("shops", [shops_in_turn, shops_that_lack_nothing_first, unknown_shops_first])
@pytest.mark.parametrize("service", ["pandas", "python", "both"])
def test_blocks_have_what_feast_computes_of_all_rows_at_once(world, caplog, service, shops):
    job = world.ask(service, world.request(shops()))

    joined = streamed(job, ROWS_IN_TESTS)

    assert caplog.messages == []
    assert_same(joined, typed_as_declared(job, job.to_arrow()))


def streamed(job: AsofRetrievalJob, rows_per_block: int) -> pa.Table:
    """A job's rows with on-demand features, in blocks of another size than usual, as Feast names them."""
    rows = pa.concat_tables(with_on_demand_features(views_of(job), job.to_batches(), (), rows_per_block))
    return rows.rename_columns([feast_name(name) for name in rows.column_names])


def views_of(job: AsofRetrievalJob) -> OnDemandViews:
    return OnDemandViews(job.on_demand_feature_views, job.metadata.features, job.metadata.keys)


def test_feasts_own_store_answers_the_same(world):
    theirs = open_repository(world.folder, "duckdb", offline="duckdb")
    request = world.request(shops_in_turn())
    numbered = pd.read_parquet(request).assign(row=np.arange(ROWS))
    with inside(world.folder):
        whole = theirs.get_historical_features(numbered, theirs.get_feature_service("both"), True).to_df()
    job = world.ask("both", request)
    whole = whole.sort_values("row", ignore_index=True)

    ours = streamed(job, ROWS_IN_TESTS).to_pandas()

    pd.testing.assert_frame_equal(ours, whole[ours.columns], check_exact=True, check_dtype=False)


def test_a_views_function_never_gets_more_rows_than_a_block(world, caplog):
    job = world.ask("both", world.request(shops_in_turn(2 * ROWS_PER_BLOCK + 1000)))
    calls = counting(job)

    joined = streamed(job, ROWS_PER_BLOCK)

    assert caplog.messages == []
    assert max(calls) == ROWS_PER_BLOCK + CARRIED
    assert_same(joined, typed_as_declared(job, job.to_arrow()))


def counting(job: AsofRetrievalJob) -> list[int]:
    """How many rows the views' functions get at each call from now on."""
    calls = []

    def counted(function: Any) -> Any:
        def count(inputs: Any) -> Any:
            calls.append(len(inputs["shop_id"]))
            return function(inputs)

        return count

    for view in job.on_demand_feature_views:
        view.feature_transformation.udf = counted(view.feature_transformation.udf)
    return calls


@pytest.mark.parametrize("shops", [shops_in_turn, shops_that_lack_nothing_first])
@pytest.mark.parametrize("view", ["centred", "guessed", "grouped", "lagged", "repaired", "formatted", "ranked"])
def test_a_function_that_looks_at_other_rows_gets_all_at_once_and_a_warning_says_so(world, caplog, view, shops):
    job = world.ask(view, world.request(shops()))

    joined = streamed(job, ROWS_IN_TESTS)

    (message,) = caplog.messages
    assert f"the function of on-demand view '{view}'" in message
    assert "this request is loaded into memory as a whole" in message
    assert_same(joined, typed_as_declared(job, job.to_arrow()))


def test_a_function_that_begins_to_look_at_other_rows_later_ends_the_request(world):
    job = world.ask("late", world.request(shops_in_turn(), unlucky_row=ROWS - 2))
    with pytest.raises(ValueError, match="on-demand view 'late' returns different values for the same row"):
        streamed(job, ROWS_IN_TESTS)


@pytest.mark.parametrize("service", ["pandas", "python", "both"])
def test_the_size_of_blocks_never_changes_a_feature(world, service):
    random = np.random.default_rng(11)
    for rows_per_block in (1, 2, 5, 11):
        job = world.ask(service, world.request(random.integers(-1, SHOPS + 2, random.integers(1, 30))))
        assert_same(streamed(job, rows_per_block), typed_as_declared(job, job.to_arrow()))


@pytest.mark.parametrize("service", ["both", "centred"])
def test_rows_past_their_time_to_live_are_counted_with_on_demand_views_too(world, service):
    shops = shops_in_turn(ROWS_PER_BLOCK + 1)
    inputs = {"both": {"stats__rate": pa.float64(), "expected": pa.float64(), "label": pa.string()}}
    signature = inputs.get(service, {"centred": pa.float64()})
    features = link_features(
        world.store, "m/1", service, Signature(tuple(ModelInput(*each) for each in signature.items())), ()
    )
    join = PointInTimeJoin(world.store, features, world.request(shops))

    assert sum(table.num_rows for table in join.tables()) == join.rows == len(shops)
    assert join.stale == {"stats": int(((shops >= SHOPS * 2 // 3) & (shops < SHOPS)).sum())}
