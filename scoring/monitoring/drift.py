"""Measures how far the distribution of columns has moved from a baseline: the population stability index (PSI), nulls,
and new categories.

The bins of a number lie between the deciles of its baseline. A value that two or more deciles are equal to has a bin of
its own. The bins of a category (string or boolean) are its most frequent values, and one for all others.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import listed

BINS = 10
# With fewer values, random variation exceeds useful thresholds (10 bins: 0.18 for 100 values against 100).
MIN_ROWS_FOR_DRIFT = 100
# An empty bin counts as this share, to avoid log(0).
EMPTY_SHARE = 1e-4
MOST_CATEGORIES = 100
MOST_NAMED, SEARCHED = 5, 1000

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ColumnBaseline(msgspec.Struct, frozen=True, dict=True):
    """The distribution of one feature or output."""

    values: int
    """Number of values without nulls. NaN counts as null."""
    nulls: Share
    """Share of the rows."""
    shares: list[Share]
    """Share of the values in each bin: below the first edge, from each edge on; or of each category, then of all
    others."""
    edges: list[float] | None = None
    """Ascending edges of the bins of a number. None for a category."""
    categories: list[str] = []
    """The most frequent ones first."""

    def __post_init__(self) -> None:
        if len(self.shares) != 1 + len(self.categories if self.edges is None else self.edges):
            raise ValueError("the number of shares is not the number of bins")
        if any(before >= after for before, after in itertools.pairwise(self.edges or ())):
            raise ValueError("the edges do not ascend")

    @property
    def complete(self) -> bool:
        """Whether it has values and names all of them, so that others are new categories."""
        return self.edges is None and not self.shares[-1] and self.values > 0


class Baseline(msgspec.Struct, frozen=True):
    """The distributions that a model version is compared with."""

    rows: int
    columns: dict[str, ColumnBaseline]
    """Inputs of the model by their names in its signature, and outputs by their names in a batch output."""
    source: str = "training"
    """What was measured."""
    version: Literal[1] = 1
    """Of this format."""


class ColumnDrift(msgspec.Struct, frozen=True):
    """How far a column has moved from its baseline."""

    column: str
    rows: int
    psi: float | None
    """None with fewer than MIN_ROWS_FOR_DRIFT values."""
    nulls: float
    """Share of the rows."""
    nulls_before: float
    new: float | None
    """Share of the values whose category the baseline does not have. None if it does not have all, or for numbers."""
    new_categories: Sequence[str]
    """Some of them."""

    def problems(self, psi: float, nulls: float, new: float) -> Iterator[str]:
        """Describe what exceeds a threshold: of the PSI, of additional nulls and of new categories."""
        if self.psi is not None and self.psi > psi:
            yield f"{self.column} has PSI {self.psi:.3f} ({psi:g} allowed)"
        if self.nulls > self.nulls_before + nulls:
            allowed = f"{self.nulls_before:.1%} in the baseline, {nulls:.1%} more allowed"
            yield f"{self.column} is null in {self.nulls:.1%} of the rows ({allowed})"
        if self.rows and self.nulls_before == 1 and 1 - self.nulls > nulls:
            values = f"{1 - self.nulls:.1%} of the rows ({nulls:.1%} allowed)"
            yield f"{self.column} has values in {values}, none in the baseline"
        if self.new is not None and self.new > new:
            names = ", ".join(map(repr, self.new_categories))
            yield f"{self.column} has new categories in {self.new:.1%} of the values ({new:.1%} allowed): {names}"


class Observed:
    """Counts of values in the bins of a baseline."""

    def __init__(self, baseline: Baseline) -> None:
        """Count nothing yet."""
        self.baseline = baseline
        self.counts: dict[str, np.ndarray] = {}
        """Column → number of values in each bin, then of nulls."""
        self.new: dict[str, list[str]] = {}
        """Column → some of its new categories."""
        self.uncompared: dict[str, None] = {}
        """Numbers and categories that the baseline lacks or has with another type, in their order."""

    def add(self, rows: pa.Table) -> None:
        """Count the values of each column. Skip one that the baseline lacks or has with another type."""
        for name in rows.column_names:
            values = rows[name]
            column = self.baseline.columns.get(name)
            try:
                if column is None:
                    raise pa.ArrowInvalid("not in the baseline")
                counts = count(column, values)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                if _is_number(values.type) or _is_category(values.type):
                    self.uncompared[name] = None
                continue
            self.counts[name] = self.counts.get(name, 0) + counts
            named = self.new.setdefault(name, [])
            if column.complete and counts[-2] and len(named) < MOST_NAMED:
                strings = _strings(values).drop_null()
                new = strings.filter(pc.invert(pc.is_in(strings, pa.array([*column.categories, *named], pa.string()))))
                named += new.slice(0, SEARCHED).unique().to_pylist()[: MOST_NAMED - len(named)]

    def drifts(self) -> list[ColumnDrift]:
        """Return the drift of each column, the largest PSI first."""
        found = [self._drift(name, counts) for name, counts in self.counts.items()]
        return sorted(found, key=lambda each: -(each.psi or 0))

    def _drift(self, name: str, counts: np.ndarray) -> ColumnDrift:
        column, rows, values = self.baseline.columns[name], int(counts.sum()), int(counts[:-1].sum())
        new = float(counts[-2] / max(values, 1)) if column.complete else None
        nulls = float(counts[-1] / max(rows, 1))
        return ColumnDrift(name, rows, index(column, counts), nulls, column.nulls, new, self.new.get(name, ()))


def merged(observed: Sequence[Observed]) -> Observed:
    """Return the sum of counts, at least one, in the bins of one baseline."""
    total = Observed(observed[0].baseline)
    for each in observed:
        for name, counts in each.counts.items():
            total.counts[name] = total.counts.get(name, 0) + counts
            total.new.setdefault(name, each.new[name])
    return total


def describe(values: pa.Array | pa.ChunkedArray) -> ColumnBaseline:
    """Return the distribution of a column.

    Raises:
        pa.ArrowNotImplementedError, pa.ArrowInvalid: it is neither a number nor a category.
    """
    edges: list[float] | None = None
    categories: list[str] = []
    if _is_number(values.type):
        numbers = _numbers(values)
        finite = numbers[np.isfinite(numbers)]
        # Edges are values of the column, so that those of a float32 column are float32, too.
        wanted = np.linspace(0, 1, BINS + 1)[1:-1]
        deciles = np.quantile(finite, wanted, method="higher") if len(finite) else finite
        each, repeats = np.unique(deciles, return_counts=True)
        with np.errstate(over="ignore"):
            bounds = np.append(each, np.nextafter(each[repeats > 1].astype(np.float32), np.float32(np.inf)))
        edges = np.unique(bounds[np.isfinite(bounds)]).tolist()
    else:
        found = _strings(values).drop_null().value_counts()
        frequent = pa.table({"name": found.field("values"), "rows": found.field("counts")})
        frequent = frequent.sort_by([("rows", "descending"), ("name", "ascending")]).slice(0, MOST_CATEGORIES)
        categories = frequent["name"].to_pylist()
    bins = [0.0] * (1 + len(categories if edges is None else edges))
    counts = count(ColumnBaseline(len(values), 0, bins, edges, categories), values)
    present = int(counts[:-1].sum())
    shares = (counts[:-1] / max(present, 1)).tolist()
    return ColumnBaseline(present, float(counts[-1]) / max(len(values), 1), shares, edges, categories)


def describe_all(rows: pa.Table, source: str = "training", total: int | None = None) -> Baseline:
    """Return the distributions of columns, without those that are neither a number nor a category.

    `rows` are a sample of `total` rows, by default all.
    """
    found = {}
    for name in rows.column_names:
        try:
            found[name] = describe(rows[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return Baseline(rows.num_rows if total is None else total, found, source)


def count(column: ColumnBaseline, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the number of values in each bin, then of nulls: int64 (n_bins + 1,).

    Raises:
        pa.ArrowInvalid, pa.ArrowNotImplementedError: the values are not of the baseline's type.
    """
    if not column.values or pa.types.is_null(values.type):  # a column without values fits any type
        nulls = pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0
        places = np.zeros(len(values) - nulls, np.int64)
    elif column.edges is not None:
        if not _is_number(values.type) and not pa.types.is_boolean(values.type):  # a model may be trained on 0 and 1
            raise pa.ArrowInvalid("another type")
        numbers, edges = _numbers(values), np.array(column.edges)
        with np.errstate(over="ignore"):
            rounded = edges.astype(np.float32)
            # A feature is a Float32 in one store and a double in another: compare both as float32.
            if values.type in {pa.float16(), pa.float32()} or np.array_equal(rounded, edges):
                numbers, edges = numbers.astype(np.float32), rounded
        places = np.searchsorted(edges, numbers[~np.isnan(numbers)], side="right")
    elif _is_number(values.type):
        raise pa.ArrowInvalid("another type")
    else:
        known = pa.array(column.categories, pa.string())
        found = pc.index_in(_strings(values).drop_null(), known)
        places = pc.fill_null(found, len(column.categories)).to_numpy()
    counts = np.bincount(places, minlength=len(column.shares))
    return np.append(counts, len(values) - len(places))


def index(column: ColumnBaseline, counts: np.ndarray) -> float | None:
    """Return the PSI of counted values; None if they or the baseline are fewer than MIN_ROWS_FOR_DRIFT."""
    values = counts[:-1].sum()
    if min(values, column.values) < MIN_ROWS_FOR_DRIFT:
        return None
    before, after = np.array(column.shares), counts[:-1] / values
    if column.edges is None:  # many rare categories would vary by chance
        before, after = (np.append(each[: BINS - 1], each[BINS - 1 :].sum()) for each in (before, after))
    return psi(before, after)


def psi(before: np.ndarray, after: np.ndarray) -> float:
    """Return the population stability index of two distributions, as shares of the same bins.

    0 means the same distribution; above 0.25 is commonly considered a shift.
    """
    before, after = (np.maximum(each, EMPTY_SHARE) for each in (before, after))
    return float(np.sum((after - before) * np.log(after / before)))


def summary(observed: Observed, drifts: Sequence[ColumnDrift], problems: Sequence[str]) -> str:
    """Return in one line what exceeds its threshold, or else the largest PSI, and which columns are not compared."""
    largest = next((each for each in drifts if each.psi is not None), None)
    if not drifts:
        passed = "no column has the name and type of one in the baseline: nothing is compared"
    elif not any(each.rows for each in drifts):
        passed = "there are no rows to compare"
    elif largest is None:
        passed = f"too few values to measure PSI: {MIN_ROWS_FOR_DRIFT} are needed"
    else:
        passed = f"largest PSI {largest.psi:.3f} ({largest.column})"
    found = listed(problems, MOST_NAMED, "; ") or passed
    if drifts and observed.uncompared:
        found += f"; not in the baseline, or of another type: {listed(list(observed.uncompared), MOST_NAMED)}"
    return f"{found}; relative to: {observed.baseline.source}"


def _is_number(dtype: pa.DataType) -> bool:
    return any(check(dtype) for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))


def _is_category(dtype: pa.DataType) -> bool:
    return any(check(dtype) for check in (pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string))


def _numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return numbers as float64, NaN for null."""
    return np.asarray(pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _strings(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_temporal(values.type) or pa.types.is_binary(values.type):
        raise pa.ArrowNotImplementedError("not a category")
    return pc.cast(values, pa.string())
