"""The comparison of an output with the published one that it replaces."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.batch.manifest import ORIGIN_KEY, Manifest, Origin, ScoringSummary, as_json
from scoring.batch.quality import SAMPLED_ROWS
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.files.transfer import Content
from scoring.monitoring.comparison import VersionComparison, compare_with_replaced
from serving_assets.assets import plots
from serving_assets.assets.display import comparison_metadata


def write_output(file: Path, model: str, predictions: Sequence[float | None], request: str = "a1") -> None:
    origin = Origin(Content("day1.csv", 10, request), model, "service", "hash")
    table = pa.table({"prediction": pa.array(predictions, pa.float64())})
    pq.write_table(table.replace_schema_metadata({ORIGIN_KEY: msgspec.json.encode(origin)}), file, row_group_size=7)


def compare(folder: Path) -> VersionComparison | None:
    with ParquetFiles([folder / "new.parquet"]) as table:
        return compare_with_replaced(Location(folder), table, [name for name in table.schema.names if name != "a"])


def test_rows_are_compared_in_order_and_a_prediction_that_came_or_went_counts(tmp_path: Path) -> None:
    write_output(tmp_path / "batch_output.parquet", "m/1", [1.0, 2.0, None, None, 5.0])
    write_output(tmp_path / "new.parquet", "m/2", [1.0, 2.5, None, 4.0, 4.0])
    compared = compare(tmp_path)
    assert compared is not None
    assert compared.differences("prediction").tolist() == [0.0, 0.5, -1.0]
    metadata = comparison_metadata(compared)
    assert metadata["compared_with"].value == "m/1"
    assert metadata["changed_predictions"].value == (
        "3 of 5 rows differ from m/1: by 0.5 in the median, 1 at most, -0.1667 on average"
    )
    quantiles = {"median_change": 0.5, "p95_change": 0.95, "p99_change": 0.99}
    changes = {**quantiles, "largest_change": 1.0, "mean_change": -0.5 / 3}
    assert compared.outputs() == [{"output": "prediction", "rows_that_differ": 3, "share": 0.6, **changes}]
    assert {"statistic": "maximum", "earlier": 5.0, "current": 4.0} in compared.statistics()
    table = str(metadata["version_comparison"].value)
    assert table.splitlines()[0] == "|  | m/1 | m/2 |"
    assert "| predictions | 3 | 4 |" in table
    assert "| maximum | 5 | 4 |" in table
    assert "changed_labels" not in metadata
    assert compared.predicted_by_both
    assert plots.version_comparison(compared).startswith("![Change of the predictions](data:image/png;base64,")


def write_outputs(folder: Path, model: str, outputs: dict[str, pa.Array], name: str = "batch_output.parquet") -> None:
    """Write a file with these outputs and an input, and the manifest of a published one."""
    origin = Origin(Content("day1.csv", 10, "a1"), model, "service", "hash")
    table = pa.table({"a": pa.nulls(len(next(iter(outputs.values())))), **outputs})
    pq.write_table(table.replace_schema_metadata({ORIGIN_KEY: msgspec.json.encode(origin)}), folder / name)
    content = Content(name, 1, "")
    types = {
        output: {"bool": "bool", "string": "string"}.get(str(values.type), "double")
        for output, values in outputs.items()
    }
    summary = ScoringSummary(content, "exclude", {}, 1, 1, {}, {}, types)  # type: ignore[arg-type]
    if name == "batch_output.parquet":
        (folder / "manifest.json").write_bytes(as_json(Manifest(content, origin, summary)))


def test_several_outputs_are_compared_each_by_its_kind(tmp_path: Path) -> None:
    labels = [["gold", "gold", "tin", None, "tin"], ["tin", "tin", "gold", "gold", "tin"]]
    for model, label, shift, name in (
        ("m/1", labels[0], 0.0, "batch_output.parquet"),
        ("m/2", labels[1], 0.5, "new.parquet"),
    ):
        number = [None if each is None else place + shift for place, each in enumerate(label)]
        outputs = {"prediction_label": pa.array(label), "prediction_gold": pa.array(number)}
        write_outputs(tmp_path, model, outputs, name)
    compared = compare(tmp_path)
    assert compared is not None
    assert compared.summary() == (
        "5 of 5 rows differ from m/1: prediction_label in 4, prediction_gold in 5 by 0.5 at most"
    )
    metadata = comparison_metadata(compared)
    assert str(metadata["version_comparison"].value).splitlines()[2:] == [
        "| prediction_label | 4 | 0.8 |  |  |  |  |  |",
        "| prediction_gold | 5 | 1 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 |",
    ]
    assert str(metadata["changed_labels"].value).splitlines() == [
        "| output | m/1 | m/2 | rows |",
        "| --- | --- | --- | --- |",
        "| prediction_label | gold | tin | 2 |",
        "| prediction_label | tin | gold | 1 |",
        "| prediction_label | (no prediction) | gold | 1 |",
    ]
    assert len(plots.version_comparison(compared)) < 40_000


@pytest.mark.parametrize(
    "values", [[True, False], [2**60, 2**60 + 1], ["gold", "tin"]], ids=["booleans", "integers", "strings"]
)
def test_a_label_that_stays_and_one_that_changes(tmp_path: Path, values: list[object]) -> None:
    write_outputs(tmp_path, "m/1", {"prediction": pa.array(values)})
    write_outputs(tmp_path, "m/2", {"prediction": pa.array(values)}, "new.parquet")
    same = compare(tmp_path)
    assert same is not None
    assert same.summary() == "0 of 2 rows differ from m/1"
    assert "changed_labels" not in comparison_metadata(same)
    assert plots.version_comparison(same)
    write_outputs(tmp_path, "m/2", {"prediction": pa.array([values[0], values[0]])}, "new.parquet")
    changed = compare(tmp_path)
    assert changed is not None
    assert changed.summary() == "1 of 2 rows differ from m/1"
    assert changed.label_changes("prediction") == [(str(values[1]), str(values[0]), 1)]


def test_outputs_that_only_one_version_has_are_named_and_the_others_are_compared(tmp_path: Path) -> None:
    write_outputs(tmp_path, "m/1", {"prediction": pa.array([1.0])})
    write_outputs(tmp_path, "m/2", {"prediction_a": pa.array([1.0]), "prediction_b": pa.array(["x"])}, "new.parquet")
    unlike = compare(tmp_path)
    assert unlike is not None
    assert comparison_metadata(unlike).keys() == {"compared_with", "changed_predictions"}
    assert unlike.summary() == (
        "the outputs can't be compared: only m/1 has prediction (double); "
        "only m/2 has prediction_a (double), prediction_b (string)"
    )
    assert not unlike.predicted_by_both
    write_outputs(tmp_path, "m/1", {"prediction_a": pa.array([2.0]), "prediction_b": pa.array([True])})
    partly = compare(tmp_path)
    assert partly is not None
    assert partly.summary() == (
        "1 of 1 rows differ from m/1: by 1 in the median, 1 at most, -1 on average; "
        "only m/1 has prediction_b (bool); only m/2 has prediction_b (string)"
    )


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
    assert not compared.predicted_by_both
    assert "| mean |  |  |" in str(comparison_metadata(compared)["version_comparison"].value)


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
    assert set(compared.differences("prediction").tolist()) == {1.0}
    assert compared.summary().endswith(f"(sampled from {rows} rows)")
