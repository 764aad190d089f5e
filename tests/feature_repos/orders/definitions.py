"""A fourth world, with what a join can be asked for: two keys, ties, other names in the file, a view under two names,
one without entities, one on demand."""

from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
merchant = Entity(name="merchant", join_keys=["merchant_id"], value_type=ValueType.INT64)

habits = FeatureView(
    name="habits",
    entities=[customer, merchant],
    ttl=timedelta(days=2),
    schema=[
        Field(name="customer_id", dtype=String),
        Field(name="merchant_id", dtype=Int64),
        Field(name="mean_amount", dtype=Float32),
        Field(name="orders", dtype=Int32),
        Field(name="trusted", dtype=Bool),
    ],
    source=FileSource(
        path="data/habits.parquet",
        timestamp_field="at",
        created_timestamp_column="created",
        field_mapping={"amount_mean": "mean_amount", "seen": "at"},
    ),
)

profile = FeatureView(
    name="profile",
    entities=[customer],
    schema=[
        Field(name="customer_id", dtype=String),
        Field(name="age", dtype=Int64),
        Field(name="tier", dtype=String),
        Field(name="visits", dtype=Int64),
    ],
    source=FileSource(path="data/profile.parquet", timestamp_field="event_timestamp"),
)

market = FeatureView(
    name="market",
    entities=[],
    ttl=timedelta(hours=5, microseconds=500_000),
    schema=[Field(name="index", dtype=Float64)],
    source=FileSource(path="data/market.parquet", timestamp_field="event_timestamp"),
)

order = RequestSource(name="order", schema=[Field(name="amount", dtype=Float64)])


@on_demand_feature_view(sources=[habits, order], schema=[Field(name="ratio", dtype=Float64)], mode="pandas")
def compared(inputs: pd.DataFrame) -> pd.DataFrame:
    """The order's amount against the pair's usual one."""
    return (inputs["amount"] / inputs["mean_amount"].astype("float64")).to_frame("ratio")


orders = FeatureService(
    name="orders",
    features=[
        habits,
        profile[["age", "tier"]].with_name("owner"),
        profile[["visits"]].with_name("referrer").with_join_key_map({"customer_id": "referrer_id"}),
        market,
        compared,
    ],
)
