import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.files.parquet import ParquetFiles
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
        markdown = histograms(table, ["prediction", "speed"])()

    assert drawn(markdown) > 0.005
    assert len(markdown) < 40_000


def test_features_that_do_not_fit_are_counted(tmp_path):
    columns = {f"f{i}": [1.0, 2.0] for i in range(MOST_PANELS + 3)}
    pq.write_table(pa.table(columns), tmp_path / "file.parquet")

    with ParquetFiles([tmp_path / "file.parquet"]) as table:
        assert "3 more features are not drawn" in histograms(table, list(columns))()
