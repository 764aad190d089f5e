"""Pictures for Dagit: how predictions and features are distributed. Loads matplotlib (0.4 s) when one is drawn."""

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

BINS = 30
PANELS_PER_ROW = 4
# Dagit shows a picture from inside an event: it must stay small.
MOST_PANELS = 12
MOST_WORDS = 8
# On each axis; more of them run into each other where their numbers are long.
TICKS = 4


def histograms(table: ParquetFiles, columns: list[str]) -> Callable[[], str]:
    """What draws a histogram of each column, of a sample where the table is large; the table is read now.

    One such function at a time: matplotlib's settings are those of the whole process.
    """
    shown = {name: sample(table, name) for name in columns[:MOST_PANELS]}
    return functools.partial(_picture, shown, len(columns) - len(shown))


def _picture(shown: Mapping[str, pa.Array], left_out: int) -> str:
    """Markdown with one picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = math.ceil(len(shown) / PANELS_PER_ROW)
    across = min(len(shown), PANELS_PER_ROW)
    with mpl.rc_context({"font.size": 7}):
        # Fixed margins: layout="tight" draws everything twice to find them.
        figure = Figure(figsize=(2.4 * across, 1.7 * rows))
        figure.subplots_adjust(0.16 / across, 0.2 / rows, 1 - 0.03 / across, 1 - 0.2 / rows, wspace=0.3, hspace=0.5)
        panels = list(figure.subplots(rows, across, squeeze=False).flat)
        for panel in panels:
            panel.set_visible(False)
        for panel, (name, values) in zip(panels, shown.items(), strict=False):
            try:
                with np.errstate(over="raise"):
                    _draw(panel, name, values)
            except (ValueError, FloatingPointError) as error:  # the numbers differ by too little or too much for bins
                panel.clear()
                _tell(panel, name, first_line(error, 40))
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=80)
    more = f"\n\n{left_out} more features are not drawn." if left_out else ""
    return f"![Distributions](data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}){more}"


def _draw(panel: "Axes", name: str, values: pa.Array) -> None:
    panel.set_visible(True)
    # Where it would be anyway, found without laying out the ticks.
    panel.set_title(name, fontsize=8, y=1, parse_math=False)
    panel.spines[["top", "right"]].set_visible(False)
    if len(values) == 0:
        _tell(panel, name, "no values")
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = values.to_numpy(zero_copy_only=False).astype("float64")
        # One outline: thirty bars take three times as long.
        panel.stairs(*np.histogram(numbers[abs(numbers) < math.inf], BINS), fill=True, color="#4f43dd")
        panel.locator_params(nbins=TICKS)
    else:
        counts = pc.value_counts(values.cast(pa.string())).to_pylist()
        words = sorted(counts, key=lambda pair: -pair["counts"])[:MOST_WORDS]
        panel.barh(range(len(words)), [pair["counts"] for pair in words], color="#c5c1f5")
        for place, pair in enumerate(words):
            panel.text(0, place, f" {str(pair['values'])[:24]}", va="center", parse_math=False)
        panel.set_yticks([])
        panel.invert_yaxis()


def _tell(panel: "Axes", name: str, words: str) -> None:
    panel.set_title(name, fontsize=8, y=1, parse_math=False)
    panel.text(0.5, 0.5, words, ha="center", transform=panel.transAxes, parse_math=False)
    panel.set_xticks([])
    panel.set_yticks([])
