"""The output columns of a model version, and the conversion of what the model returns to them."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import PredictionFailed
from scoring.models.tags import OUTPUT_COLUMN_TAG

OutputType = Literal["double", "int64", "bool", "string"]

ARROW_TYPES: dict[OutputType, pa.DataType] = {
    "double": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
# The kind of a NumPy array → the type of an output. Objects are judged by their values.
TYPES: dict[str, OutputType] = {"f": "double", "i": "int64", "u": "int64", "b": "bool", "U": "string"}
PREDICTION = "prediction"


class OutputColumn(msgspec.Struct, frozen=True):
    """One output: its name, without the prefix `prediction_`, and its type."""

    name: str
    type: OutputType

    @property
    def numeric(self) -> bool:
        """Return whether entities can be ranked by it."""
        return self.type in {"double", "int64"}


class Outputs(msgspec.Struct, frozen=True, dict=True):
    """What a model version returns for each row."""

    columns: tuple[OutputColumn, ...]
    chosen: int | None = None
    """The column of the model's own output that is the only output, counted from 0; None for all columns."""
    rank_by: int | None = None
    """The output that entities are ranked by, as an index of `columns`; None if none was chosen."""

    @property
    def single(self) -> bool:
        """Return whether there is only one output, called `prediction` in a file and `score` online."""
        return len(self.columns) == 1

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Return the columns' names in a file: `prediction`, or `prediction_<name>` for each of several."""
        return (PREDICTION,) if self.single else tuple(f"{PREDICTION}_{column.name}" for column in self.columns)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Return the Arrow schema of a file's output columns, all nullable."""
        return pa.schema(list(zip(self.names, (ARROW_TYPES[column.type] for column in self.columns), strict=True)))

    def table(self, model: str, returned: Sequence[Any], rows: int, filled: int) -> pa.Table:
        """Return the outputs of the first `rows` of `filled` rows, with `schema`.

        Args:
            model: `name/version`, for errors.
            returned: what each function of the model returned for the filled rows.
            rows: number of rows that count.
            filled: number of rows that the model was called with.

        Raises:
            PredictionFailed: the number of rows, columns or a type is not the described one. Without a cause.
        """
        columns = [values for each in returned for _, values in split(model, each, filled)]
        if self.chosen is not None and len(columns) > 1:
            if self.chosen >= len(columns):
                problem = f"its output has {len(columns)} columns and column {self.chosen} (counted from 0) is chosen"
                raise PredictionFailed(model, f"{problem} by the tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN.")
            columns = [columns[self.chosen]]
        if len(columns) != len(self.columns):
            problem = f"its output has {len(columns)} columns, and had {len(self.columns)} when it was loaded."
            raise PredictionFailed(model, problem)
        arrays = [_to_arrow(model, values[:rows], column) for values, column in zip(columns, self.columns, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    @functools.cached_property
    def _only_numbers(self) -> bool:
        """Return whether all are doubles, and none was chosen among others."""
        return self.chosen is None and all(column.type == "double" for column in self.columns)

    def numbers(self, returned: Sequence[Any], rows: int, filled: int) -> list[list[float]] | None:
        """Return the values of `table` as columns; None unless they are one array of finite floating-point numbers."""
        values = returned[0]
        if len(returned) > 1 or type(values) is not np.ndarray or values.dtype.kind != "f" or not self._only_numbers:
            return None
        columns = values.reshape(1, -1) if values.ndim == 1 else values.T
        if columns.shape != (len(self.columns), filled):
            return None
        known = columns[:, :rows].astype(np.float64)
        return known.tolist() if np.isfinite(known).all() else None


ONE_NUMBER = Outputs((OutputColumn("predict", "double"),), rank_by=0)
"""The outputs of a regressor with one target."""


def split(model: str, returned: Any, rows: int) -> list[tuple[str | None, np.ndarray]]:
    """Return the columns of what a model returned: name, None if it has none, and values (rows,).

    Raises:
        PredictionFailed: it is not one value or one row of values for each row.
    """
    if isinstance(returned, np.ndarray) and returned.ndim == 1:
        columns: list[tuple[str | None, np.ndarray]] = [(None, returned)]
    elif isinstance(returned, dict):
        columns = [
            (str(name) if len(part) == 1 else f"{name}_{place if inner is None else inner}", values)
            for name, each in returned.items()
            for part in [split(model, each, rows)]
            for place, (inner, values) in enumerate(part)
        ]
    elif isinstance(returned, list) and returned and all(np.ndim(each) == 2 for each in returned):
        # Multi-output classifiers return one array of probabilities per target.
        columns = [
            (f"{target}_{place}", each[:, place])
            for target, each in enumerate(returned)
            for place in range(each.shape[1])
        ]
    elif hasattr(returned, "iloc") and hasattr(returned, "columns"):
        columns = [(str(name), returned.iloc[:, place].to_numpy()) for place, name in enumerate(returned.columns)]
    else:
        values = np.asarray(returned)
        if values.ndim == 2:
            columns = [(None, values[:, place]) for place in range(values.shape[1])]
        else:
            columns = [(None, values)]
    for _, values in columns:
        if values.shape != (rows,):
            problem = f"its output has shape {np.shape(values)} for {rows} rows, not one value or row of values per row"
            raise PredictionFailed(model, f"{problem}.")
    if not columns:
        raise PredictionFailed(model, "its output has no columns.")
    return columns


def usable(outputs: pa.Table) -> np.ndarray:
    """Return whether every output of a row has a value, and every number is finite; bool (n_rows,)."""
    good = None
    for column in outputs.columns:
        if pa.types.is_floating(column.type):
            known = np.isfinite(column.to_numpy())
        elif column.null_count:
            known = pc.is_valid(column).to_numpy()
        else:
            continue
        good = known if good is None else good & known
    return np.ones(outputs.num_rows, dtype=bool) if good is None else good


def same_bits(left: pa.Table, right: pa.Table) -> bool:
    """Return whether two tables of outputs are equal, numbers to the bit."""
    if left.schema != right.schema or left.num_rows != right.num_rows:
        return False
    return all(
        np.array_equal(mine.to_numpy().view(np.int64), theirs.to_numpy().view(np.int64))
        if pa.types.is_floating(mine.type)
        else mine.equals(theirs)
        for mine, theirs in zip(left.columns, right.columns, strict=True)
    )


def _to_arrow(model: str, values: np.ndarray, column: OutputColumn) -> pa.Array:
    kind = values.dtype.kind
    if column.type == "double" and kind in "fiub":
        return pa.array(values.astype(np.float64))
    try:
        if kind == "O" or TYPES.get(kind) == column.type:
            return pa.array(values, ARROW_TYPES[column.type], from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        pass
    problem = f"its output {column.name!r} is {values.dtype}, and was {column.type} when it was loaded"
    raise PredictionFailed(model, f"{problem}: return the same type for every row.")
