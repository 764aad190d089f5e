"""Compares the predictions of two model versions for the same rows."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import to_string
from scoring.batch.manifest import published_output, read_origin
from scoring.batch.quality import are_labels, sampled_rows
from scoring.errors import ServingError
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, no_rows

# Ranges of rows that are compared if a table has more than `sampled_rows`.
RANGES = 8
MOST_LISTED = 5
MOST_CHANGES = 20
NO_PREDICTION = "(no prediction)"

Table = tuple[list[str], list[dict[str, object]]]
"""Columns, and rows by column."""


class VersionComparison(msgspec.Struct, frozen=True):
    """The predictions of two model versions for the same rows."""

    before: str
    """`name/version` of the earlier version."""
    after: str
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
        return any(
            pc.any(pc.and_(pc.is_valid(mine), pc.is_valid(theirs))).as_py()
            for mine, theirs in zip(self.earlier.columns[:1], self.current.columns[:1], strict=True)
        )

    def changed_labels(self) -> Table | None:
        """Return the most frequent changes of labels; None if no label changed."""
        changes = {name: self.label_changes(name) for name in self.current.column_names if self.labels(name)}
        rows: list[dict[str, object]] = [
            {"output": name, self.before: before, self.after: after, "rows": count}
            for name, of_output in changes.items()
            for before, after, count in of_output
        ]
        columns = [self.before, self.after, "rows"]
        return (["output", *columns] if len(changes) > 1 else columns, rows) if rows else None

    def summary(self) -> str:
        """Return the differences in one line."""
        names = self.current.column_names
        if not names:
            return f"the outputs can't be compared: {'; '.join(self.unlike)}"
        changed = np.logical_or.reduce([self._changed(name) for name in names])
        compared = len(changed)
        text = f"{np.count_nonzero(changed)} of {compared} rows differ from {self.before}"
        sizes = {name: self._sizes(name) for name in names[:MOST_LISTED]}
        if len(names) == 1:
            if found := sizes[names[0]]:
                text += ": by {median:.4g} in the median, {largest:.4g} at most, {mean:+.4g} on average".format(**found)
        elif changed.any():
            listed = [
                f"{name} in {np.count_nonzero(self._changed(name))}"
                + (f" by {found['largest']:.4g} at most" if found else "")
                for name, found in sizes.items()
            ]
            more = f" and {len(names) - MOST_LISTED} more outputs" if len(names) > MOST_LISTED else ""
            text += f": {', '.join(listed)}{more}"
        text = "; ".join([text, *self.unlike])
        return text if compared == self.rows else f"{text} (a sample of {self.rows} rows)"

    def labels(self, name: str) -> bool:
        """Return whether an output is a label."""
        return are_labels(self.earlier[name]) and are_labels(self.current[name])

    def differences(self, name: str) -> np.ndarray:
        """Return current minus earlier values of a number, float64, for the rows that both versions predicted."""
        differences = as_numbers(self.current[name]) - as_numbers(self.earlier[name])
        return np.asarray(differences[~np.isnan(differences)])

    def label_changes(self, name: str) -> list[tuple[str, str, int]]:
        """Return the most frequent changes of a label: earlier label, current label and number of rows."""
        both = pa.table({"before": self.earlier[name], "after": self.current[name]})
        counts = both.filter(pa.array(self._changed(name))).group_by(["before", "after"]).aggregate([([], "count_all")])
        order = [("count_all", "descending"), ("before", "ascending"), ("after", "ascending")]
        most = counts.sort_by(order).slice(0, MOST_CHANGES)
        return [
            (*(to_string(each) if each.is_valid else NO_PREDICTION for each in labels), count.as_py())
            for *labels, count in zip(most["before"], most["after"], most["count_all"], strict=True)
        ]

    def _changed(self, name: str) -> np.ndarray:
        """Return whether each row's value differs, bool (n_rows,); a prediction that came or went counts."""
        earlier, current = self.earlier[name], self.current[name]
        came_or_went = pc.not_equal(pc.is_null(earlier), pc.is_null(current))
        return np.asarray(pc.or_(came_or_went, pc.fill_null(pc.not_equal(earlier, current), False)).to_numpy())

    def _sizes(self, name: str) -> dict[str, float]:
        """Return how large the differences of a number are; empty for a label, and without any."""
        differences = np.empty(0) if self.labels(name) else self.differences(name)
        if not len(differences):
            return {}
        sizes = np.abs(differences)
        return {"median": np.median(sizes), "largest": np.max(sizes), "mean": np.mean(differences)}

    def statistics(self) -> Table | None:
        """Return how much the outputs differ; None if none can be compared."""
        names = self.current.column_names
        if not names:
            return None
        if len(names) == 1 and not self.labels(names[0]):
            return self._statistics_of(names[0])
        rows: list[dict[str, object]] = []
        for name in names:
            changed = self._changed(name)
            share = f"{np.count_nonzero(changed)} ({np.mean(changed) if len(changed) else 0:.1%})"
            sizes = {f"{size} change": f"{value:.4g}" for size, value in self._sizes(name).items()}
            rows.append({"output": name, "rows that differ": share} | sizes)
        columns = ["output", "rows that differ", "median change", "largest change", "mean change"]
        return columns, rows

    def _statistics_of(self, name: str) -> Table:
        statistics: Mapping[str, Callable[[np.ndarray], float]] = {
            "mean": np.nanmean, "standard deviation": np.nanstd, "minimum": np.nanmin, "median": np.nanmedian,
            "maximum": np.nanmax,
        }  # fmt: skip
        columns = {self.before: as_numbers(self.earlier[name]), self.after: as_numbers(self.current[name])}
        rows: list[dict[str, object]] = [
            {"": "predictions"} | {name: int(np.isfinite(values).sum()) for name, values in columns.items()}
        ]
        for label, statistic in statistics.items():
            rows.append({"": label})
            for version, values in columns.items():
                if np.isfinite(values).any():
                    rows[-1][version] = f"{statistic(values):.6g}"
        return ["", *columns], rows


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
            now, then = (read_origin(each.schema, str(folder)) for each in (table, published))
            same_request = then.request.sha256 == now.request.sha256 and published.rows == table.rows
            if then.model == now.model or not same_request:
                return None
            return compare_outputs((then.model, published, replaced), (now.model, table, names))
    except (ServingError, OSError, pa.ArrowInvalid, KeyError, msgspec.MsgspecError):
        return None  # the old output is unreadable; it must not block the new output


def compare_outputs(
    earlier: tuple[str, ParquetFiles, Sequence[str]], current: tuple[str, ParquetFiles, Sequence[str]]
) -> VersionComparison:
    """Compare two scored files with the same rows. Each is `name/version`, the file, and its output columns."""
    types = [{name: table.schema.field(name).type for name in names} for _, table, names in (earlier, current)]
    then, now = types
    alike = [name for name, dtype in now.items() if then.get(name) == dtype]
    return VersionComparison(
        earlier[0],
        current[0],
        _predictions(earlier[1], alike),
        _predictions(current[1], alike),
        current[1].rows,
        [
            f"only {model} has {_listed({name: each for name, each in own.items() if name not in alike})}"
            for model, own in ((earlier[0], then), (current[0], now))
            if own.keys() - alike
        ],
    )


def _listed(outputs: Mapping[str, pa.DataType]) -> str:
    listed = [f"{name} ({dtype})" for name, dtype in outputs.items()]
    return ", ".join(listed[:MOST_LISTED]) + (f" and {len(listed) - MOST_LISTED} more" if listed[MOST_LISTED:] else "")


def _predictions(table: ParquetFiles, names: Sequence[str]) -> pa.Table:
    """Return the outputs of all rows, or of RANGES ranges of a large table."""
    most = sampled_rows(len(names))
    ranges = 1 if table.rows <= most else RANGES
    length = min(table.rows, most) // ranges
    starts = np.linspace(0, table.rows - length, ranges, dtype=int).tolist()
    pieces = [
        piece.take(pa.array(range(piece.num_rows)))  # a slice would keep its whole row group in memory
        for start in starts
        for piece in table.between(start, start + length, names)
    ]
    return pa.concat_tables(pieces) if pieces else no_rows(table.schema).select(names)
