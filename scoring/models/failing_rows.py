"""Finds the rows on which a model raises, by bisection, so that the other rows keep their predictions."""

import math
import time
from collections.abc import Iterator
from typing import NoReturn

import msgspec
import numpy as np
import pyarrow as pa

from scoring.errors import PredictionFailed
from scoring.models.model import Model

MAX_CALLS = 8192
"""Maximum number of further model calls per search, which suffices for any 4096 different rows."""


class RowFailures(msgspec.Struct, frozen=True):
    """Rows on which a model raises."""

    rows: np.ndarray
    """bool (n_rows,), at least one True."""
    together: PredictionFailed
    """The error for all rows together."""
    error: PredictionFailed
    """The error for the first failing row alone; its cause is the model's own exception."""
    column: str | None
    """The one input whose value makes that row fail; None if unknown."""

    @property
    def first(self) -> int:
        """Return the index of the first failing row."""
        return int(np.argmax(self.rows))


def predict_rows(
    model: Model, vectors: pa.Table, *, first_only: bool = False, search_s: float = math.inf
) -> tuple[pa.Table, RowFailures | None]:
    """Predict, and find the rows on which the model raises.

    The predictions are identical, to the bit, to those of the other rows without the failing ones. The search treats
    equal rows as one.

    Args:
        model: the loaded version.
        vectors: feature vectors (n_rows, n_inputs), as `Model.predict` takes them.
        first_only: whether the caller needs only the first failing row. The outputs are then null.
        search_s: time limit of the search, in seconds.

    Returns:
        The outputs as of `Model.predict`, null for failing rows; and the failing rows, None if there are none.

    Raises:
        PredictionFailed: this machine may be the cause, the model does not fail on any row alone, or the search reached
            its time limit or MAX_CALLS.
    """
    try:
        return model.predict(vectors), None
    except PredictionFailed as error:
        if error.transient or error.__cause__ is None:  # without a cause, its whole output has the wrong shape or type
            raise
        failures = _Search(model, vectors, error, search_s).run(first_only=first_only)
    passed = np.zeros(vectors.num_rows, dtype=bool) if first_only else ~failures.rows
    outputs = model.predict(vectors.filter(pa.array(passed)))
    return outputs.take(places_of(passed)), failures


def places_of(chosen: np.ndarray) -> pa.Array:
    """Return each chosen row's index among the chosen rows, int64 (n_rows,); null for the other rows."""
    return pa.array(np.cumsum(chosen) - 1, mask=~chosen)


class _LimitReached(Exception):
    """The search has used up its calls or time."""


class _Search:
    def __init__(self, model: Model, vectors: pa.Table, error: PredictionFailed, search_s: float) -> None:
        self._model = model
        self._error = error
        first, self._group = _distinct(vectors)
        self._distinct = vectors.take(first)
        self._until = time.perf_counter() + search_s
        self._calls = 0

    def run(self, *, first_only: bool) -> RowFailures:
        found: list[int] = []
        first: PredictionFailed | None = None
        try:
            for row, error in self._failing(0, self._distinct.num_rows, self._error):
                found.append(row)
                first = first or error  # only one is kept, because each holds the frames of its traceback
                if first_only:
                    break
            if first is None:
                self._raise_not_reproduced()
        except _LimitReached:
            problem = (
                f"{self._error.problem}. The search for the rows on which it fails was stopped after {self._calls} "
                f"further calls; it had found {len(found)}"
            )
            raise PredictionFailed(self._error.model, problem) from self._error
        failing = np.zeros(self._distinct.num_rows, dtype=bool)
        failing[found] = True
        return RowFailures(failing[self._group], self._error, first, self._column(found[0], failing))

    def _failing(self, start: int, rows: int, error: PredictionFailed | None) -> Iterator[tuple[int, PredictionFailed]]:
        """Yield the failing rows of a range that fails as a whole, in order. `error` is None if that is inferred."""
        if rows == 1:
            error = error or self._fails(self._distinct.slice(start, 1))
            if error is not None:
                yield start, error
            return
        half = rows // 2
        left = self._fails(self._distinct.slice(start, half))
        if left is not None:
            yield from self._failing(start, half, left)
        right = self._fails(self._distinct.slice(start + half, rows - half)) if left is not None else None
        if left is None or right is not None:
            yield from self._failing(start + half, rows - half, right)

    def _column(self, bad: int, failing: np.ndarray) -> str | None:
        """Return the input that makes the row `bad` fail: with another row's value, it passes. None if unknown."""
        names = self._distinct.column_names
        if failing.all():
            return names[0] if len(names) == 1 else None
        row, other = (self._distinct.slice(place, 1) for place in (bad, int(np.argmin(failing))))
        low, high = 0, len(names)
        try:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._fails(_mixed(row, other, low, middle)) else (low, middle)
            return None if self._fails(_mixed(row, other, low, high)) else names[low]
        except _LimitReached:
            return None

    def _fails(self, rows: pa.Table) -> PredictionFailed | None:
        if self._calls == MAX_CALLS or time.perf_counter() > self._until:
            raise _LimitReached
        self._calls += 1
        try:
            self._model.predict(rows)
        except PredictionFailed as error:
            if error.transient or error.__cause__ is None:
                raise
            return error
        return None

    def _raise_not_reproduced(self) -> NoReturn:
        together = self._fails(self._distinct)
        what = "but not on any of them alone" if together else "but not on a second attempt"
        problem = f"{self._error.problem}, {what}"
        raise PredictionFailed(self._error.model, problem, transient=together is None) from self._error


def _distinct(vectors: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each group of equal rows, int64 (n_groups,), and each row's group, int64 (n_rows,)."""
    encoded = [column.combine_chunks().dictionary_encode("encode").indices for column in vectors.columns]
    codes = np.column_stack([indices.to_numpy() for indices in encoded])
    _, first, group = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[group.reshape(-1)]


def _mixed(row: pa.Table, other: pa.Table, start: int, end: int) -> pa.Table:
    """Return `row` with the columns from `start` to before `end` of `other`."""
    columns = [*row.columns[:start], *other.columns[start:end], *row.columns[end:]]
    return pa.Table.from_arrays(columns, schema=row.schema)
