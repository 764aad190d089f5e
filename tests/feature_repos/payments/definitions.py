"""A third world: one view with two join keys."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64, String

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
merchant = Entity(name="merchant", join_keys=["merchant_id"], value_type=ValueType.INT64)

payments = FeatureView(
    name="payments",
    entities=[customer, merchant],
    ttl=timedelta(days=7),
    schema=[
        Field(name="customer_id", dtype=String),
        Field(name="merchant_id", dtype=Int64),
        Field(name="mean_amount", dtype=Float32),
        Field(name="count_30d", dtype=Int64),
    ],
    source=FileSource(path="data/payments.parquet", timestamp_field="event_timestamp"),
)

fraud = FeatureService(name="fraud", features=[payments])
