"""Plots of distributions for Dagit. The first one loads matplotlib (0.4 s)."""

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.batch.quality import sample
from scoring.errors import first_line
from scoring.files.parquet import ParquetFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 30
PANELS_PER_ROW = 4
# Images are stored in events, so keep them small.
MOST_PANELS = 12
MOST_VALUES = 8
# Ticks per axis; more would overlap.
TICKS = 4


def histograms(table: ParquetFiles, columns: list[str]) -> Callable[[], str]:
    """Sample each column, and return a function that draws the samples' histograms and returns Markdown.

    The function is not thread-safe: matplotlib's settings are global.
    """
    drawn = {name: sample(table, name) for name in columns[:MOST_PANELS]}
    return functools.partial(_draw_histograms, drawn, len(columns) - len(drawn))


def _draw_histograms(columns: Mapping[str, pa.Array], left_out: int) -> str:
    """Return Markdown with one image: a histogram per column."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = math.ceil(len(columns) / PANELS_PER_ROW)
    across = min(len(columns), PANELS_PER_ROW)
    with mpl.rc_context({"font.size": 7}):
        # Fixed margins: layout="tight" draws everything twice to find them.
        figure = Figure(figsize=(2.4 * across, 1.7 * rows))
        figure.subplots_adjust(0.16 / across, 0.2 / rows, 1 - 0.03 / across, 1 - 0.2 / rows, wspace=0.3, hspace=0.5)
        panels = list(figure.subplots(rows, across, squeeze=False).flat)
        for panel in panels:
            panel.set_visible(False)
        for panel, (name, values) in zip(panels, columns.items(), strict=False):
            try:
                with np.errstate(over="raise"):
                    _draw(panel, name, values)
            except (ValueError, FloatingPointError) as error:  # the range of values is too small or too large for bins
                panel.clear()
                _show_message(panel, name, first_line(error, 40))
        plot = _markdown_image("Distributions", figure)
    return plot + (f"\n\n{left_out} more features are not drawn." if left_out else "")


def version_comparison(
    before: str, after: str, earlier: np.ndarray, current: np.ndarray, differences: np.ndarray
) -> str:
    """Return Markdown with one image: both versions' predictions, and the differences per row.

    Args:
        before, after: the names of the versions.
        earlier, current: their predictions, float64; NaN if a row has none.
        differences: current minus earlier, float64, without NaN.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 7}), np.errstate(over="raise"):
        figure = Figure(figsize=(6.4, 1.9))
        figure.subplots_adjust(0.06, 0.16, 0.98, 0.84, wspace=0.2)
        both, change = figure.subplots(1, 2)
        edges = np.histogram_bin_edges(np.concatenate([_finite(earlier), _finite(current)]), BINS)
        for name, values, color in ((before, earlier, "#8c8c8c"), (after, current, "#4f43dd")):
            both.stairs(np.histogram(_finite(values), edges)[0], edges, color=color, label=name)
        both.set_title("prediction", fontsize=8, y=1)
        both.legend(frameon=False, fontsize=6)
        change.stairs(*np.histogram(differences, BINS), fill=True, color="#4f43dd")
        change.axvline(0, color="#8c8c8c", linewidth=0.8)
        change.set_title("change per row", fontsize=8, y=1)
        for panel in (both, change):
            panel.spines[["top", "right"]].set_visible(False)
            panel.locator_params(nbins=TICKS)
        return _markdown_image("Change of the predictions", figure)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.asarray(values[np.isfinite(values)])


def _markdown_image(title: str, figure: "Figure") -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=80)
    return f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"


def _draw(panel: "Axes", name: str, values: pa.Array) -> None:
    panel.set_visible(True)
    # y=1 is the default position; setting it avoids laying out the ticks.
    panel.set_title(name, fontsize=8, y=1, parse_math=False)
    panel.spines[["top", "right"]].set_visible(False)
    if len(values) == 0:
        _show_message(panel, name, "no values")
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = values.to_numpy(zero_copy_only=False).astype("float64")
        # Draw one outline: thirty bars take three times as long.
        panel.stairs(*np.histogram(numbers[abs(numbers) < math.inf], BINS), fill=True, color="#4f43dd")
        panel.locator_params(nbins=TICKS)
    else:
        counts = pc.value_counts(values.cast(pa.string())).to_pylist()
        frequent = sorted(counts, key=lambda pair: -pair["counts"])[:MOST_VALUES]
        panel.barh(range(len(frequent)), [pair["counts"] for pair in frequent], color="#c5c1f5")
        for place, pair in enumerate(frequent):
            panel.text(0, place, f" {str(pair['values'])[:24]}", va="center", parse_math=False)
        panel.set_yticks([])
        panel.invert_yaxis()


def _show_message(panel: "Axes", name: str, text: str) -> None:
    panel.set_title(name, fontsize=8, y=1, parse_math=False)
    panel.text(0.5, 0.5, text, ha="center", transform=panel.transAxes, parse_math=False)
    panel.set_xticks([])
    panel.set_yticks([])
