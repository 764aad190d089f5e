"""The comparison of an output with the published one that it replaces."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.batch.manifest import ORIGIN_KEY, Origin
from scoring.batch.quality import SAMPLED_ROWS
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.files.transfer import Content
from serving_assets.assets import plots
from serving_assets.assets.version_comparison import VersionComparison, compare_with_replaced


def write_output(file: Path, model: str, predictions: Sequence[float | None], request: str = "a1") -> None:
    origin = Origin(Content("day1.csv", 10, request), model, "service", "hash")
    table = pa.table({"prediction": pa.array(predictions, pa.float64())})
    pq.write_table(table.replace_schema_metadata({ORIGIN_KEY: msgspec.json.encode(origin)}), file, row_group_size=7)


def compare(folder: Path) -> VersionComparison | None:
    with ParquetFiles([folder / "new.parquet"]) as table:
        return compare_with_replaced(Location(folder), table)


def test_rows_are_compared_in_order_and_a_prediction_that_came_or_went_counts(tmp_path: Path) -> None:
    write_output(tmp_path / "batch_output.parquet", "m/1", [1.0, 2.0, None, None, 5.0])
    write_output(tmp_path / "new.parquet", "m/2", [1.0, 2.5, None, 4.0, 4.0])
    compared = compare(tmp_path)
    assert compared is not None
    assert compared.differences().tolist() == [0.0, 0.5, -1.0]
    metadata = compared.metadata()
    assert metadata["compared_with"].value == "m/1"
    assert metadata["changed_predictions"].value == (
        "3 of 5 rows differ from m/1: by 0.5 in the median, 1 at most, -0.1667 on average"
    )
    table = str(metadata["version_comparison"].value)
    assert table.splitlines()[0] == "|  | m/1 | m/2 |"
    assert "| predictions | 3 | 4 |" in table
    assert "| maximum | 5 | 4 |" in table
    arguments = (compared.before, compared.after, compared.earlier, compared.current, compared.differences())
    assert plots.version_comparison(*arguments).startswith("![Change of the predictions](data:image/png;base64,")


@pytest.mark.parametrize(
    "published",
    [
        None,
        {"model": "m/2", "predictions": [1.0, 2.0]},
        {"model": "m/1", "predictions": [1.0]},
        {"model": "m/1", "predictions": [1.0, 2.0], "request": "b2"},
    ],
    ids=["nothing published", "same version", "other number of rows", "other request"],
)
def test_there_is_nothing_to_compare_with(tmp_path: Path, published: dict[str, object] | None) -> None:
    if published is not None:
        write_output(tmp_path / "batch_output.parquet", **published)  # type: ignore[arg-type]
    write_output(tmp_path / "new.parquet", "m/2", [1.0, 3.0])
    assert compare(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"not parquet"])
def test_an_unreadable_output_is_replaced_without_a_comparison(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch_output.parquet").write_bytes(content)
    write_output(tmp_path / "new.parquet", "m/2", [1.0, 3.0])
    assert compare(tmp_path) is None


def test_outputs_without_predictions_are_compared(tmp_path: Path) -> None:
    for file, model in (("batch_output.parquet", "m/1"), ("new.parquet", "m/2")):
        write_output(tmp_path / file, model, [None, None])
    compared = compare(tmp_path)
    assert compared is not None
    assert compared.summary() == "0 of 2 rows differ from m/1"
    assert "| mean |  |  |" in str(compared.metadata()["version_comparison"].value)


def test_a_large_output_is_compared_by_the_same_sample_of_rows(tmp_path: Path) -> None:
    rows = SAMPLED_ROWS + 1_000
    for file, model, shift, size in (("batch_output.parquet", "m/1", 0.0, 65_536), ("new.parquet", "m/2", 1.0, 40_000)):
        origin = Origin(Content("day1.csv", 10, "a1"), model, "service", "hash")
        table = pa.table({"prediction": pa.array([row + shift for row in range(rows)], pa.float64())})
        metadata = {ORIGIN_KEY: msgspec.json.encode(origin)}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / file, row_group_size=size)
    compared = compare(tmp_path)
    assert compared is not None
    assert len(compared.current) <= SAMPLED_ROWS
    assert set(compared.differences().tolist()) == {1.0}
    assert compared.summary().endswith(f"(a sample of {rows} rows)")
