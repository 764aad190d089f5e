"""Describes the outputs of a model version once, when it is loaded or admitted, and chooses those to serve."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scoring.errors import ModelRefused, PredictionFailed
from scoring.models.outputs import PREDICTION, TYPES, OutputColumn, Outputs, OutputType, split
from scoring.models.tags import OUTPUT_COLUMN_TAG, OUTPUTS_TAG, RANK_BY_TAG

# Types in the outputs of an MLflow signature.
SIGNATURE_TYPES: dict[str, OutputType] = {"boolean": "bool", "integer": "int64", "long": "int64", "string": "string"}
PER_CLASS = frozenset({"predict_proba", "predict_log_proba", "decision_function"})
"""Functions of a classifier with one column per class."""
LABEL = "label"


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
