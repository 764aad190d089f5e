"""The output columns of a model version, described once when the version is loaded."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import ModelRefused, PredictionFailed
from scoring.models.registry import OUTPUT_COLUMN_TAG, OUTPUTS_TAG, RANK_BY_TAG

OutputType = Literal["double", "int64", "bool", "string"]

ARROW_TYPES: dict[OutputType, pa.DataType] = {
    "double": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
# The kind of a NumPy array → the type of an output. Objects are judged by their values.
TYPES: dict[str, OutputType] = {"f": "double", "i": "int64", "u": "int64", "b": "bool", "U": "string"}
# Types in the outputs of an MLflow signature.
SIGNATURE_TYPES: dict[str, OutputType] = {"boolean": "bool", "integer": "int64", "long": "int64", "string": "string"}
PER_CLASS = frozenset({"predict_proba", "predict_log_proba", "decision_function"})
"""Functions of a classifier with one column per class."""
LABEL = "label"
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


def describe(
    model: str,
    functions: Sequence[str],
    classes: Sequence[Any] | None,
    declared: Sequence[tuple[str | None, OutputType]],
    returned: Sequence[Any] | None,
    rows: int = 1,
) -> Outputs:
    """Describe all outputs of a model version.

    Args:
        model: `name/version`, for errors.
        functions: the names of the model's functions that predict.
        classes: the labels of a classifier; None for other models.
        declared: the outputs in the signature; empty without any.
        returned: what each function returned for some rows; None if the model could not predict.
        rows: number of these rows.

    Raises:
        ModelRefused: two outputs have the same name.
        PredictionFailed: an output has no usable shape or type.
    """
    columns: list[OutputColumn] = []
    for place, function in enumerate(functions):
        only = len(functions) == 1
        values = None if returned is None else split(model, returned[place], rows)
        columns += _columns_of(model, function, only, classes, declared if only else (), values)
    names = [column.name for column in columns]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        remedy = f"rename that output or class, or serve fewer functions (tag {OUTPUTS_TAG})"
        raise ModelRefused(model, f"two of its outputs are named {repeated!r}: {remedy}.")
    return Outputs(tuple(columns))


def choose(model: str, outputs: Outputs, column: int | None, rank_by: str | None) -> Outputs:
    """Return the outputs that the version's tags, or else the settings, choose.

    Args:
        model: `name/version`, for errors.
        outputs: all outputs of the version.
        column: the only output to serve, counted from 0; None for all.
        rank_by: name of the output that entities are ranked by; None for the only number, if there is one.

    Raises:
        ModelRefused: there is no such number to rank by.
        PredictionFailed: there is no such column.
    """
    columns = outputs.columns
    if column is not None:
        if len(columns) == 1:  # or the model could not predict, and the number of its columns is unknown
            return Outputs(columns, column, 0 if columns[0].numeric else None)
        if column >= len(columns):
            problem = f"its output has {len(columns)} columns and column {column} (counted from 0) is chosen by"
            raise PredictionFailed(model, f"{problem} the version's tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN.")
        return Outputs((columns[column],), column, 0 if columns[column].numeric else None)
    numbers = [place for place, each in enumerate(columns) if each.numeric]
    if rank_by is None:
        return Outputs(columns, None, numbers[0] if len(numbers) == 1 else None)
    named = [place for place in numbers if rank_by in {columns[place].name, outputs.names[place]}]
    if not named:
        existing = ", ".join(columns[place].name or PREDICTION for place in numbers) or "none"
        reason = f"its tag {RANK_BY_TAG} is {rank_by!r}, which is not one of its outputs that are numbers ({existing})."
        raise ModelRefused(model, reason)
    return Outputs(columns, None, named[0])


def read_declared(outputs: Sequence[dict[str, Any]]) -> list[tuple[str | None, OutputType]]:
    """Return name and type of the outputs in an MLflow signature, None for a column without a name.

    Args:
        outputs: the decoded `signature.outputs` of the MLmodel file.
    """
    declared: list[tuple[str | None, OutputType]] = []
    for each in outputs:
        if each.get("type") == "tensor":
            shape = (each.get("tensor-spec") or {}).get("shape") or [-1]
            width = shape[1] if len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 0 else 1
            declared += [(None, "double")] * width
        else:
            declared.append((each.get("name"), SIGNATURE_TYPES.get(str(each.get("type")), "double")))
    return declared


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


def _columns_of(
    model: str,
    function: str,
    only: bool,
    classes: Sequence[Any] | None,
    declared: Sequence[tuple[str | None, OutputType]],
    values: list[tuple[str | None, np.ndarray]] | None,
) -> list[OutputColumn]:
    labels = classes is not None and function == "predict"
    if values is None:
        if labels:
            return [OutputColumn(LABEL, _label_type(model, classes or ()))]
        if classes is not None and function in PER_CLASS and (function != "decision_function" or len(classes) > 2):
            return [OutputColumn(str(name), "double") for name in classes]
        values_types = declared or [(None, "double")]
        names = _names([name for name, _ in values_types], function, only, None, declared)
        return [OutputColumn(name, kind) for name, (_, kind) in zip(names, values_types, strict=True)]
    names = _names([name for name, _ in values], function, only, classes, declared)
    if labels and len(values) == 1:
        return [OutputColumn(LABEL, _label_type(model, classes or ()))]
    columns = []
    for name, (_, array) in zip(names, values, strict=True):
        kind = _type_of(model, array)
        # A single number is a double, whatever the type that the model returns.
        columns.append(OutputColumn(name, "double" if kind == "int64" and only and len(values) == 1 else kind))
    return columns


def _names(
    own: list[str | None],
    function: str,
    only: bool,
    classes: Sequence[Any] | None,
    declared: Sequence[tuple[str | None, OutputType]],
) -> list[str]:
    if classes is not None and function in PER_CLASS and len(classes) == len(own):
        return [str(name) for name in classes]
    if all(name is None for name in own) and len(declared) == len(own):
        own = [name for name, _ in declared]
    prefix = "" if only else f"{function}_"
    if len(own) == 1:
        return [own[0] or function]
    return [f"{prefix}{place}" if name is None else name for place, name in enumerate(own)]


def _label_type(model: str, classes: Sequence[Any]) -> OutputType:
    return _type_of(model, np.asarray(classes))


def _type_of(model: str, values: np.ndarray) -> OutputType:
    if values.dtype.kind in TYPES:
        return TYPES[values.dtype.kind]
    kinds = {TYPES.get(np.asarray(value).dtype.kind) for value in values if value is not None}
    if len(kinds) == 1 and (kind := kinds.pop()) is not None:
        return kind
    problem = f"its output is {values.dtype}, not numbers, strings or booleans"
    raise PredictionFailed(model, f"{problem}: convert it in the model.")


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
