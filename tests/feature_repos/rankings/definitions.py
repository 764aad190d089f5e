"""A fourth world: items to rank for a user, each with features of its own."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)

users = FeatureView(
    name="users",
    entities=[user],
    ttl=timedelta(days=7),
    schema=[Field(name="user_id", dtype=Int64), Field(name="budget", dtype=Float32), Field(name="visits", dtype=Int64)],
    source=FileSource(path="data/users.parquet", timestamp_field="event_timestamp"),
)
items = FeatureView(
    name="items",
    entities=[item],
    ttl=timedelta(days=7),
    schema=[Field(name="item_id", dtype=Int64), Field(name="price", dtype=Float32), Field(name="sold", dtype=Int64)],
    source=FileSource(path="data/items.parquet", timestamp_field="event_timestamp"),
)

ranking = FeatureService(name="ranking", features=[users, items])
