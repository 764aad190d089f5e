"""A world for benchmarks: as many views of a driver as there are files, with ten features each."""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)

views = [
    FeatureView(
        name=file.stem,
        entities=[driver],
        ttl=timedelta(days=7),
        schema=[
            Field(name="driver_id", dtype=Int64),
            *(Field(name=f"{file.stem}_{number}", dtype=Int64 if number % 2 else Float32) for number in range(10)),
        ],
        source=FileSource(path=f"data/{file.name}", timestamp_field="event_timestamp"),
    )
    for file in sorted((Path(__file__).parent / "data").glob("*.parquet"))
]

driver_ranking = FeatureService(name="driver_ranking", features=views)

# Feast registers the objects of a module, not those of its lists.
globals().update({view.name: view for view in views})
