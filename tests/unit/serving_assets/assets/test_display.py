"""What Dagit shows of a table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.arrow.text import NOT_PRINTABLE
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from serving_assets.assets.display import table_metadata


def test_values_that_python_cannot_hold_are_in_the_preview(tmp_path: Path) -> None:
    same_name = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    table = pa.table({"beyond year 9999": pa.array([253402300800], pa.timestamp("s")), "one name twice": same_name})
    pq.write_table(table, tmp_path / "odd.parquet")

    with ParquetFiles([tmp_path / "odd.parquet"]) as file:
        preview = table_metadata(file, Location(tmp_path))["preview"].value

    assert "10000-01-01" in preview
    assert NOT_PRINTABLE in preview
