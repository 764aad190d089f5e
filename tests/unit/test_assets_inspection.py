"""What is looked at in a finished output."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.manifest import Outcome
from scoring.parquet import ParquetFiles
from scoring.settings import Settings
from scoring.storage import Location
from scoring.transfer import Content
from serving_assets.inspection import OutputInspection
from tests.fakes import features


def test_a_picture_that_can_not_be_drawn_is_told_and_stops_nothing(tmp_path: Path) -> None:
    largest = 1.7e308  # further apart than a double can tell
    file = tmp_path / "batch_output.parquet"
    pq.write_table(pa.table({"prediction": [-largest, largest], "a": [0.5, 1.5]}), file)
    link = features(request_inputs={"a": pa.float64()})
    outcome = Outcome(Content("batch_input.parquet", 1, ""), "exclude", {}, rows=2, scored=2, reasons={}, software={})
    with ThreadPoolExecutor(1) as drawing, ParquetFiles([file]) as table:
        inspection = OutputInspection(Location(file), link, Settings(model_name="m"), None, drawing)
        inspection(table, outcome)
        told = inspection.metadata
    assert told["dagster/row_count"].value == 2
    assert str(told["distributions"].value).startswith("could not be drawn (")
