"""Plots of distributions for Dagit. The first one loads matplotlib (0.4 s)."""

import base64
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.batch.quality import are_labels, sample
from scoring.files.parquet import ParquetFiles
from scoring.foreign_errors import first_line
from scoring.monitoring.comparison import VersionComparison, as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 30
PANELS_PER_ROW = 4
# Images are stored in events, so keep them small.
MOST_PANELS = 12
MOST_COMPARED = 3
MOST_VALUES = 8
# Ticks per axis; more would overlap.
TICKS = 4
BEFORE, AFTER, BAR = "#8c8c8c", "#4f43dd", "#c5c1f5"


def histograms(table: ParquetFiles, outputs: Sequence[str], inputs: Sequence[str]) -> Callable[[], str]:
    """Sample each column, and return a function that draws the samples' histograms and returns Markdown.

    The function is not thread-safe: matplotlib's settings are global. Outputs that are labels are drawn as frequencies.
    """
    drawn = [*outputs[: max(MOST_PANELS // 2, MOST_PANELS - len(inputs))], *inputs][:MOST_PANELS]
    samples = {name: sample(table, name) for name in drawn}
    labels = {
        name: pc.cast(values, pa.string()) for name, values in samples.items() if name in outputs and are_labels(values)
    }
    return functools.partial(_draw_histograms, samples | labels, len(outputs) + len(inputs) - len(drawn))


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
    return plot + (f"\n\n{left_out} more columns are not drawn." if left_out else "")


def version_comparison(compared: VersionComparison) -> str:
    """Return Markdown with one image: both versions' predictions, and the changes per row, for each output."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = compared.current.column_names[:MOST_COMPARED]
    with mpl.rc_context({"font.size": 7}), np.errstate(over="raise"):
        figure = Figure(figsize=(6.4, 1.9 * len(names)))
        figure.subplots_adjust(0.08, 0.16 / len(names), 0.98, 1 - 0.16 / len(names), wspace=0.2, hspace=0.5)
        for (both, change), name in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
            (_compare_labels if compared.labels(name) else _compare_numbers)(both, change, compared, name)
            both.set_title(name, fontsize=8, y=1, parse_math=False)
            both.legend(frameon=False, fontsize=6)
            change.set_title("change per row", fontsize=8, y=1)
            for panel in (both, change):
                panel.spines[["top", "right"]].set_visible(False)
        plot = _markdown_image("Change of the predictions", figure)
    every = compared.current.num_columns
    return plot + (f"\n\nThe first {len(names)} of {every} outputs are drawn." if every > len(names) else "")


def counts(title: str, values: Mapping[str, int]) -> str:
    """Return Markdown with one image: a bar per name, in this order."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 7}):
        figure = Figure(figsize=(4.8, 0.3 + 0.22 * len(values)))
        figure.subplots_adjust(0.02, 0.16, 0.98, 0.98)
        panel = figure.subplots()
        panel.barh(range(len(values)), list(values.values()), color=BAR)
        _name_bars(panel, [f"{name}: {count:,}" for name, count in values.items()], 48)
        panel.locator_params(axis="x", nbins=TICKS, integer=True)
        panel.spines[["top", "right"]].set_visible(False)
        return _markdown_image(title, figure)


def _compare_numbers(both: "Axes", change: "Axes", compared: VersionComparison, name: str) -> None:
    earlier, current = (_finite(as_numbers(table[name])) for table in (compared.earlier, compared.current))
    edges = np.histogram_bin_edges(np.concatenate([earlier, current]), BINS)
    for label, values, color in (
        (compared.earlier_version, earlier, BEFORE),
        (compared.current_version, current, AFTER),
    ):
        both.stairs(np.histogram(values, edges)[0], edges, color=color, label=label)
    change.stairs(*np.histogram(compared.differences(name), BINS), fill=True, color=AFTER)
    change.axvline(0, color=BEFORE, linewidth=0.8)
    for panel in (both, change):
        panel.locator_params(nbins=TICKS)


def _compare_labels(both: "Axes", change: "Axes", compared: VersionComparison, name: str) -> None:
    counts = [_counts(table[name].drop_null()) for table in (compared.earlier, compared.current)]
    labels = sorted(counts[0] | counts[1], key=lambda each: -counts[0].get(each, 0) - counts[1].get(each, 0))
    labels = labels[:MOST_VALUES]
    for shift, label, count, color in (
        (-0.2, compared.earlier_version, counts[0], "#d9d9d9"),
        (0.2, compared.current_version, counts[1], BAR),
    ):
        places = [place + shift for place in range(len(labels))]
        both.barh(places, [count.get(each, 0) for each in labels], 0.4, color=color, label=label)
    _name_bars(both, labels, 48)
    changes = compared.label_changes(name)[:MOST_VALUES]
    if changes:
        change.barh(range(len(changes)), [count for _, _, count in changes], color=BAR)
        _name_bars(change, [f"{earlier} → {current}" for earlier, current, _ in changes], 48)
    else:
        _show_message(change, "", "no label changed")


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
        panel.stairs(*np.histogram(numbers[abs(numbers) < math.inf], BINS), fill=True, color=AFTER)
        panel.locator_params(nbins=TICKS)
    else:
        frequent = dict(list(_counts(values).items())[:MOST_VALUES])
        panel.barh(range(len(frequent)), list(frequent.values()), color=BAR)
        _name_bars(panel, list(frequent))


def _counts(values: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Return value → number of rows, most frequent first."""
    counts = pc.value_counts(values.cast(pa.string())).to_pylist()
    return {str(pair["values"]): pair["counts"] for pair in sorted(counts, key=lambda pair: -pair["counts"])}


def _name_bars(panel: "Axes", names: Sequence[str], characters: int = 24) -> None:
    for place, name in enumerate(names):
        panel.text(0, place, f" {name[:characters]}", va="center", parse_math=False)
    panel.set_yticks([])
    panel.invert_yaxis()


def _show_message(panel: "Axes", name: str, text: str) -> None:
    panel.set_title(name, fontsize=8, y=1, parse_math=False)
    panel.text(0.5, 0.5, text, ha="center", transform=panel.transAxes, parse_math=False)
    panel.set_xticks([])
    panel.set_yticks([])
