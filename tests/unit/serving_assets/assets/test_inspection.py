"""The inspection of a finished output."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.batch.manifest import ScoringSummary
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.files.transfer import Content
from scoring.settings import Settings
from serving_assets.assets.inspection import OutputInspection
from tests.support.fakes import features


class WithoutMemory(Executor):
    """Fails for lack of memory."""

    def submit(self, _function: Callable[..., Any], /, *_args: Any, **_options: Any) -> Future[Any]:
        failed: Future[Any] = Future()
        failed.set_exception(MemoryError())
        return failed


def test_a_plot_that_cannot_be_drawn_is_reported_and_the_rest_is_published(tmp_path: Path) -> None:
    file = tmp_path / "batch_output.parquet"
    pq.write_table(pa.table({"prediction": [1.0, 2.0], "a": [0.5, 1.5]}), file)
    link = features(request_inputs={"a": pa.float64()})
    outcome = ScoringSummary(
        Content("batch_input.parquet", 1, ""), "exclude", {}, rows=2, scored=2, reasons={}, software={}
    )
    with ParquetFiles([file]) as table:
        inspection = OutputInspection(Location(file), link, Settings(model_name="m"), None, WithoutMemory())
        inspection(table, outcome)
        metadata = inspection.metadata
    assert metadata["dagster/row_count"].value == 2
    assert str(metadata["distributions"].value).startswith("could not be drawn (")
