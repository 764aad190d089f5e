"""Driver features for ranking drivers for a ride."""

import os
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

# Location of the offline store's files: s3://bucket/prefix or a folder, relative to this one.
DATA = os.environ.get("FEATURE_DATA", "data")

driver = Entity(
    name="driver",
    join_keys=["driver_id"],
    value_type=ValueType.INT64,
    description="A driver who takes rides.",
)

driver_stats_source = FileSource(
    name="driver_stats_source",
    path=f"{DATA}/driver_stats.parquet",
    s3_endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3", ""),
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    description="Hourly statistics of each driver.",
)

driver_stats = FeatureView(
    name="driver_stats",
    entities=[driver],
    ttl=timedelta(days=1),
    schema=[
        Field(name="driver_id", dtype=Int64),
        Field(name="conv_rate", dtype=Float32, description="Fraction of offered rides that became rides, 0 to 1."),
        Field(
            name="acc_rate",
            dtype=Float32,
            description="Fraction of offered rides that the driver accepted, 0 to 1.",
        ),
        Field(name="avg_daily_trips", dtype=Int64, description="Mean number of rides per day."),
    ],
    source=driver_stats_source,
    online=True,
)

driver_ranking = FeatureService(
    name="driver_ranking",
    features=[driver_stats],
    description="Features for ranking drivers for a ride.",
)
