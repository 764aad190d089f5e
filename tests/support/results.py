"""Results of batch requests without a model."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.batch.manifest import Manifest, Origin, ScoringSummary, as_json
from scoring.files.location import Location
from scoring.files.transfer import Content, content_of

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def result(folder: Path, rows: int, value: Any = 0.5, *, model: str = "m/1", parts: int = 0, **own: Any) -> Location:
    """A result as an engine publishes it, in `parts` files or one."""
    folder.mkdir(parents=True, exist_ok=True)
    times = pa.array([NOON] * rows, pa.timestamp("us", "UTC"))
    table = pa.table({"id": pa.array(range(rows)), "event_timestamp": times, "prediction": [value] * rows} | own)
    names = [f"part-{part}.parquet" for part in range(parts)] or ["batch_output.parquet"]
    for place, name in enumerate(names):
        pq.write_table(table.slice(place * rows // len(names), rows // len(names)), folder / name)
    contents = [content_of(folder / name, name) for name in names]
    summary = ScoringSummary(contents[0], "exclude", {}, rows, rows, {}, {})
    origin = Origin(Content("day1.csv", 1, ""), model, "service", "")
    manifest = Manifest(contents[0], origin, summary, tuple(contents) if parts else ())
    (folder / "manifest.json").write_bytes(as_json(manifest))
    return Location(folder)
