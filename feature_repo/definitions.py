"""Features of drivers, for ranking the drivers who could take a ride."""

import os
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

# A folder, or s3://bucket/prefix: where the files of the offline store are, as seen from this folder.
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
        Field(name="conv_rate", dtype=Float32, description="Share of offered rides that became rides, 0 to 1."),
        Field(
            name="acc_rate",
            dtype=Float32,
            description="Share of offered rides that the driver accepted, 0 to 1.",
        ),
        Field(name="avg_daily_trips", dtype=Int64, description="Mean rides a day."),
    ],
    source=driver_stats_source,
    online=True,
)

driver_ranking = FeatureService(
    name="driver_ranking",
    features=[driver_stats],
    description="What a model needs to rank drivers for a ride.",
)
