import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.files.parquet import ParquetFiles
from serving_assets.assets import plots
from serving_assets.assets.plots import MOST_PANELS, histograms


def drawn(markdown: str) -> float:
    """Return the share of the plot's pixels that are not white."""
    from matplotlib.image import imread

    data = markdown.removeprefix("![Distributions](data:image/png;base64,").partition(")")[0]
    return float(np.mean(imread(io.BytesIO(base64.b64decode(data)))[..., :3].min(axis=2) < 0.9))


@pytest.mark.parametrize(
    "values",
    [
        pa.array(np.linspace(0, 1, 500)),
        pa.array([1, 2, 2, None]),
        pa.array(["a", "b", "b", None]),
        pa.array([True, False, None]),
        pa.array([None, None], pa.float64()),
        pa.array([0.5] * 9 + [float("inf"), float("nan")]),
        pa.array([1.0, 1.0000000000000002]),
        pa.array([-1.7e308, 1.7e308]),
        pa.array([r"$\frac{$", "a", None]),
    ],
)
def test_every_kind_of_column_is_drawn_and_stays_small(tmp_path, values):
    pq.write_table(pa.table({"prediction": values, "speed": values}), tmp_path / "file.parquet")

    with ParquetFiles([tmp_path / "file.parquet"]) as table:
        markdown = histograms(table, ["prediction"], ["speed"])()

    assert drawn(markdown) > 0.005
    assert len(markdown) < 40_000


@pytest.mark.parametrize(
    ("outputs", "inputs", "drawn_outputs"), [(1, 14, 1), (14, 1, 11), (9, 9, 6)], ids=["inputs", "outputs", "both"]
)
def test_columns_that_do_not_fit_are_counted(tmp_path, outputs, inputs, drawn_outputs, monkeypatch):
    names = [[f"o{i}" for i in range(outputs)], [f"i{i}" for i in range(inputs)]]
    pq.write_table(pa.table({name: [1.0, 2.0] for each in names for name in each}), tmp_path / "file.parquet")
    panels = []
    monkeypatch.setattr(plots, "_draw", lambda _panel, name, _values: panels.append(name))

    with ParquetFiles([tmp_path / "file.parquet"]) as table:
        markdown = histograms(table, *names)()

    assert panels == [*names[0][:drawn_outputs], *names[1][: MOST_PANELS - drawn_outputs]]
    assert f"{outputs + inputs - MOST_PANELS} more columns are not drawn" in markdown


def test_an_integer_output_of_few_values_is_drawn_as_labels_and_an_input_as_numbers(tmp_path, monkeypatch):
    pq.write_table(pa.table({"prediction": [2**60, 2**60 + 1], "i": [1, 2]}), tmp_path / "file.parquet")
    found = {}
    monkeypatch.setattr(plots, "_draw", lambda _panel, name, values: found.update({name: values.to_pylist()}))

    with ParquetFiles([tmp_path / "file.parquet"]) as table:
        histograms(table, ["prediction"], ["i"])()

    assert found == {"prediction": [str(2**60), str(2**60 + 1)], "i": [1, 2]}
