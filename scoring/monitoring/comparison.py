"""Compares the predictions of two model versions for the same rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import to_string
from scoring.batch.manifest import published_output, read_origin
from scoring.batch.quality import are_labels, sampled_rows
from scoring.errors import ServingError, listed
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, no_rows

# Ranges of rows that are compared if a table has more than `sampled_rows`.
RANGES = 8
MAX_LISTED = 5
MOST_CHANGES = 20
QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}
NO_PREDICTION = "(no prediction)"
STATISTICS: Mapping[str, Callable[[np.ndarray], float]] = {
    "mean": np.nanmean, "standard deviation": np.nanstd, "minimum": np.nanmin, "median": np.nanmedian,
    "maximum": np.nanmax,
}  # fmt: skip

Rows = list[dict[str, Any]]
"""Rows of a table: column → value."""


class VersionComparison(msgspec.Struct, frozen=True):
    """The predictions of two model versions for the same rows."""

    earlier_version: str
    """`name/version`."""
    current_version: str
    earlier: pa.Table
    """Outputs (n_rows, n_outputs) that both versions have, with the same name and type; null if a row has none."""
    current: pa.Table
    """The same outputs and rows, by the other version."""
    rows: int
    """Rows of the request; n_rows if all of them are compared."""
    unlike: Sequence[str] = ()
    """How the versions' outputs differ, one phrase per version."""

    @property
    def predicted_by_both(self) -> bool:
        """Return whether a row has predictions by both versions."""
        if not self.current.num_columns:
            return False
        return bool(pc.any(pc.and_(pc.is_valid(self.earlier[0]), pc.is_valid(self.current[0]))).as_py())

    def summary(self) -> str:
        """Return the differences in one line."""
        outputs = self.outputs()
        if not outputs:
            return f"the outputs can't be compared: {'; '.join(self.unlike)}"
        changed = np.logical_or.reduce([self._changed(each["output"]) for each in outputs])
        text = f"{np.count_nonzero(changed)} of {len(changed)} rows differ from {self.earlier_version}"
        if len(outputs) == 1 and "median_change" in outputs[0]:
            sizes = "by {median_change:.4g} in the median, {largest_change:.4g} at most, {mean_change:+.4g} on average"
            text += f": {sizes.format(**outputs[0])}"
        elif len(outputs) > 1 and changed.any():
            phrases = [
                f"{each['output']} in {each['rows_that_differ']}"
                + (f" by {each['largest_change']:.4g} at most" if "largest_change" in each else "")
                for each in outputs
            ]
            text += f": {listed(phrases, MAX_LISTED)}"
        text = "; ".join([text, *self.unlike])
        return text if len(changed) == self.rows else f"{text} (sampled from {self.rows} rows)"

    def outputs(self) -> Rows:
        """Return how much each output differs."""
        found: Rows = []
        for name in self.current.column_names:
            changed = self._changed(name)
            share = float(np.mean(changed)) if len(changed) else 0.0
            found.append({"output": name, "rows_that_differ": int(np.count_nonzero(changed)), "share": share})
            if not self.labels(name) and len(differences := self.differences(name)):
                sizes = np.abs(differences)
                quantiles = zip(QUANTILES, np.quantile(sizes, list(QUANTILES.values())), strict=True)
                changes = {**dict(quantiles), "largest": np.max(sizes), "mean": np.mean(differences)}
                found[-1] |= {f"{kind}_change": float(value) for kind, value in changes.items()}
        return found

    def statistics(self) -> Rows:
        """Return statistics of both versions' predictions; empty unless the only output is a number."""
        names = self.current.column_names
        if len(names) != 1 or self.labels(names[0]):
            return []
        both = {"earlier": as_numbers(self.earlier[0]), "current": as_numbers(self.current[0])}
        counts = {version: int(np.isfinite(values).sum()) for version, values in both.items()}
        return [{"statistic": "predictions"} | counts] + [
            {"statistic": name} | {each: float(statistic(both[each])) for each, count in counts.items() if count}
            for name, statistic in STATISTICS.items()
        ]

    def changed_labels(self) -> Rows:
        """Return the most frequent changes of each label."""
        return [
            {"output": name, "earlier": earlier, "current": current, "rows": count}
            for name in self.current.column_names
            if self.labels(name)
            for earlier, current, count in self.label_changes(name)
        ]

    def tables(self) -> dict[str, tuple[list[str], Rows]]:
        """Return the differences as tables with columns and formatted values, without empty tables."""
        headings = {"statistic": "", "earlier": self.earlier_version, "current": self.current_version}
        found = {}
        statistics, outputs = self.statistics(), self.outputs()
        tables = {
            "version_comparison": statistics or outputs,
            "changed_outputs": outputs if statistics else [],
            "changed_labels": self.changed_labels(),
        }
        for name, rows in tables.items():
            shown = [
                {
                    headings.get(key, key.replace("_", " ")): f"{each:.6g}" if isinstance(each, float) else each
                    for key, each in row.items()
                }
                for row in rows
            ]
            if shown:
                found[name] = list(dict.fromkeys(key for row in shown for key in row)), shown
        return found

    def labels(self, name: str) -> bool:
        """Return whether an output is a label."""
        return are_labels(self.earlier[name]) and are_labels(self.current[name])

    def differences(self, name: str) -> np.ndarray:
        """Return current minus earlier values of a number, float64, for the rows that both versions predicted."""
        differences = as_numbers(self.current[name]) - as_numbers(self.earlier[name])
        return np.asarray(differences[~np.isnan(differences)])

    def label_changes(self, name: str) -> list[tuple[str, str, int]]:
        """Return the most frequent changes of a label: earlier label, current label and number of rows."""
        both = pa.table({"earlier": self.earlier[name], "current": self.current[name]})
        changed = both.filter(pa.array(self._changed(name))).group_by(["earlier", "current"])
        order = [("count_all", "descending"), ("earlier", "ascending"), ("current", "ascending")]
        most = changed.aggregate([([], "count_all")]).sort_by(order).slice(0, MOST_CHANGES)
        return [
            (*(to_string(each) if each.is_valid else NO_PREDICTION for each in labels), count.as_py())
            for *labels, count in zip(most["earlier"], most["current"], most["count_all"], strict=True)
        ]

    def _changed(self, name: str) -> np.ndarray:
        """Return whether each row's value differs, bool (n_rows,); a prediction that came or went counts."""
        earlier, current = self.earlier[name], self.current[name]
        came_or_went = pc.not_equal(pc.is_null(earlier), pc.is_null(current))
        return np.asarray(pc.or_(came_or_went, pc.fill_null(pc.not_equal(earlier, current), False)).to_numpy())


def as_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a numeric column as float64 (n_rows,), NaN for null."""
    return np.asarray(column.to_numpy().astype("float64", copy=False))


def compare_with_replaced(folder: Location, table: ParquetFiles, names: Sequence[str]) -> VersionComparison | None:
    """Compare a finished output with the published one that it is about to replace.

    Args:
        folder: the request's folder, with the published output.
        table: the new output.
        names: its output columns.

    Returns:
        None if there is no readable output of the same request by another version.
    """
    try:
        parts, replaced = published_output(folder)
        with ParquetFiles(parts) as published:
            earlier, current = (read_origin(each.schema, str(folder)) for each in (published, table))
            same_request = earlier.request.sha256 == current.request.sha256 and published.rows == table.rows
            if earlier.model == current.model or not same_request:
                return None
            return compare_outputs((earlier.model, published, replaced), (current.model, table, names))
    except (ServingError, OSError, pa.ArrowInvalid, KeyError, msgspec.MsgspecError):
        return None  # the old output is unreadable; it must not block the new output


def compare_outputs(
    earlier: tuple[str, ParquetFiles, Sequence[str]], current: tuple[str, ParquetFiles, Sequence[str]]
) -> VersionComparison:
    """Compare two scored files with the same rows. Each is `name/version`, the file, and its output columns."""
    schemas = [
        (version, pa.schema([table.schema.field(name) for name in names]))
        for version, table, names in (earlier, current)
    ]
    alike, unlike = common_outputs(*schemas)
    tables = [sampled_table(table, alike) for _, table, _ in (earlier, current)]
    return VersionComparison(earlier[0], current[0], tables[0], tables[1], current[1].rows, unlike)


def common_outputs(earlier: tuple[str, pa.Schema], current: tuple[str, pa.Schema]) -> tuple[list[str], list[str]]:
    """Return the outputs with the same name and type in both versions, and a phrase for each version about others."""
    alike = [
        field.name
        for field in current[1]
        if field.type in (each.type for each in earlier[1] if each.name == field.name)
    ]
    unlike = []
    for version, schema in (earlier, current):
        if own := [f"{field.name} ({field.type})" for field in schema if field.name not in alike]:
            unlike.append(f"only {version} has {listed(own, MAX_LISTED)}")
    return alike, unlike


def sampled_table(table: ParquetFiles, names: Sequence[str]) -> pa.Table:
    """Return columns of all rows, or of RANGES ranges of a large table."""
    most = sampled_rows(len(names))
    ranges = 1 if table.rows <= most else RANGES
    length = min(table.rows, most) // ranges
    starts = np.linspace(0, table.rows - length, ranges, dtype=int).tolist()
    pieces = [
        piece.take(pa.arange(0, piece.num_rows))  # a slice would keep its whole row group in memory
        for start in starts
        for piece in table.between(start, start + length, names)
    ]
    return pa.concat_tables(pieces) if pieces else no_rows(table.schema).select(names)
