"""Compare a request's predictions with those of the model version that is replaced."""

from collections.abc import Callable, Mapping

import dagster as dg
import msgspec
import numpy as np
import pyarrow as pa

from scoring.batch.manifest import output_parts, read_origin
from scoring.batch.quality import SAMPLED_ROWS
from scoring.errors import ServingError
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from serving_assets.assets.display import markdown_table

# Ranges of rows that are compared if a table has more than SAMPLED_ROWS.
RANGES = 8


class VersionComparison(msgspec.Struct, frozen=True):
    """The predictions of two model versions for the same rows."""

    before: str
    """`name/version` of the version whose output is replaced."""
    after: str
    earlier: np.ndarray
    """float64 (n,); NaN if a row has no prediction."""
    current: np.ndarray
    """float64 (n,), in the same order."""
    rows: int
    """Rows of the request; n if all of them are compared."""

    def metadata(self) -> dict[str, dg.MetadataValue]:
        """Return the differences in one line and the statistics of both versions as a table."""
        statistics: Mapping[str, Callable[[np.ndarray], float]] = {
            "mean": np.nanmean, "standard deviation": np.nanstd, "minimum": np.nanmin, "median": np.nanmedian,
            "maximum": np.nanmax,
        }  # fmt: skip
        columns = {self.before: self.earlier, self.after: self.current}
        rows: list[dict[str, object]] = [
            {"": "predictions"} | {name: int(np.isfinite(values).sum()) for name, values in columns.items()}
        ]
        for label, statistic in statistics.items():
            rows.append({"": label})
            for name, values in columns.items():
                if np.isfinite(values).any():
                    rows[-1][name] = f"{statistic(values):.6g}"
        return {
            "compared_with": dg.MetadataValue.text(self.before),
            "changed_predictions": dg.MetadataValue.text(self.summary()),
            "version_comparison": dg.MetadataValue.md(markdown_table(["", *columns], rows)),
        }

    def summary(self) -> str:
        """Return the differences in one line."""
        changed = int(np.sum(self.earlier != self.current) - np.sum(np.isnan(self.earlier) & np.isnan(self.current)))
        compared = len(self.current)
        text = f"{changed} of {compared} rows differ from {self.before}"
        differences = self.differences()
        if len(differences):
            text += (
                f": by {np.median(np.abs(differences)):.4g} in the median, {np.max(np.abs(differences)):.4g} at most,"
                f" {np.mean(differences):+.4g} on average"
            )
        return text if compared == self.rows else f"{text} (a sample of {self.rows} rows)"

    def differences(self) -> np.ndarray:
        """Return current minus earlier predictions, float64, for the rows that both versions predicted."""
        differences = self.current - self.earlier
        return np.asarray(differences[~np.isnan(differences)])


def compare_with_replaced(folder: Location, table: ParquetFiles) -> VersionComparison | None:
    """Compare a finished output with the published one that it is about to replace.

    Args:
        folder: the request's folder, with the published output.
        table: the new output.

    Returns:
        None if there is no readable output of the same request by another version.
    """
    try:
        now = read_origin(table.schema, str(folder))
        with ParquetFiles(output_parts(folder)) as published:
            then = read_origin(published.schema, str(folder))
            same_request = then.request.sha256 == now.request.sha256 and published.rows == table.rows
            if then.model == now.model or not same_request:
                return None
            return VersionComparison(then.model, now.model, _predictions(published), _predictions(table), table.rows)
    except (ServingError, OSError, pa.ArrowInvalid, KeyError, msgspec.MsgspecError):
        return None  # the old output is unreadable; it must not block the new output


def _predictions(table: ParquetFiles) -> np.ndarray:
    """Return the predictions of all rows, or of RANGES ranges of a large table; float64, NaN for null."""
    ranges = 1 if table.rows <= SAMPLED_ROWS else RANGES
    length = min(table.rows, SAMPLED_ROWS) // ranges
    starts = np.linspace(0, table.rows - length, ranges, dtype=int).tolist()
    pieces = [piece["prediction"] for start in starts for piece in table.between(start, start + length, ["prediction"])]
    if not pieces:
        return np.empty(0)
    return np.concatenate([piece.to_numpy().astype("float64", copy=False) for piece in pieces])
