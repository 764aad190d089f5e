"""A second world: one text key, two views of different types, one service over both."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float64, Int32, String

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)

profile = FeatureView(
    name="profile",
    entities=[customer],
    ttl=timedelta(days=30),
    schema=[
        Field(name="customer_id", dtype=String),
        Field(name="age", dtype=Int32),
        Field(name="has_card", dtype=Bool),
    ],
    source=FileSource(path="data/profile.parquet", timestamp_field="event_timestamp"),
)

spending = FeatureView(
    name="spending",
    entities=[customer],
    ttl=timedelta(days=2),
    schema=[Field(name="customer_id", dtype=String), Field(name="mean_basket", dtype=Float64)],
    source=FileSource(path="data/spending.parquet", timestamp_field="event_timestamp"),
)

churn = FeatureService(name="churn", features=[profile, spending])
