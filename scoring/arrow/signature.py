"""The model signature, which defines a model's inputs, their order and their types."""

import functools

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import ModelRefused, UnusableFeature

# MLflow's column type → the Arrow type of a feature vector's column. Others (arrays, objects, tensors) are refused.
ARROW_TYPES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "datetime": pa.timestamp("ns"),
}

# A double can represent every integer up to this one.
MAX_EXACT_INTEGER = 2**53

# Values of a row whose result is irrelevant: a probe, or a made-up golden row.
NEUTRAL: dict[pa.DataType, object] = {
    pa.bool_(): False,
    pa.int32(): 0,
    pa.int64(): 0,
    pa.float32(): 0.0,
    pa.float64(): 0.0,
    pa.string(): "-",
    pa.timestamp("ns"): 0,
    pa.timestamp("us", "UTC"): 0,
}


OUTPUT_COLUMNS = ("prediction", "reason", "model_name", "model_version", "feature_service")
"""Columns that scoring adds to those of a batch request. No input of a model may have one of these names."""


EVENT_TIMESTAMP = "event_timestamp"
"""The column of a batch request with the time as of which a row's features are joined."""


class ModelInput(msgspec.Struct, frozen=True):
    """One input of a model: its name and the Arrow type that the model was trained with."""

    name: str
    dtype: pa.DataType


class Signature(msgspec.Struct, frozen=True, dict=True):
    """A model's inputs in the expected order, as stored with the model."""

    inputs: tuple[ModelInput, ...]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Return the inputs' names, in order."""
        return tuple(column.name for column in self.inputs)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Return the Arrow schema of feature vectors, with one nullable field per input, in order."""
        return pa.schema([(column.name, column.dtype) for column in self.inputs])


def read_signature(model: str, columns: list[dict[str, object]]) -> Signature:
    """Return the signature that MLflow stored.

    Args:
        model: `name/version`, for error messages.
        columns: the decoded `signature.inputs` of the MLmodel file, dicts with `name` and `type`.

    Raises:
        ModelRefused: its inputs have no names (a tensor), or one has an unsupported type.
    """
    if not all(column.get("name") for column in columns):
        raise ModelRefused(
            model,
            "its signature has inputs without names (a tensor). Infer it from a DataFrame with named columns.",
        )
    unusable = [
        f"{column['name']} ({column.get('type')})" for column in columns if str(column.get("type")) not in ARROW_TYPES
    ]
    if unusable:
        raise ModelRefused(
            model,
            f"its inputs {', '.join(unusable)} have unsupported types; supported: {', '.join(ARROW_TYPES)}.",
        )
    return Signature(tuple(ModelInput(str(column["name"]), ARROW_TYPES[str(column["type"])]) for column in columns))


def holds_every_value(source: pa.DataType, target: pa.DataType) -> bool:
    """Return whether values of `source` may be converted to `target`.

    Widening is allowed, and so is a conversion that is checked value by value (int64 to int32 or to double). A
    conversion that would round silently (double to float) or that needs a convention (string to number, float to
    integer) is not allowed.
    """
    if source == target or (pa.types.is_timestamp(source) and pa.types.is_timestamp(target)):
        return True
    if pa.types.is_boolean(source) or pa.types.is_integer(source):
        return bool(pa.types.is_integer(target) or pa.types.is_floating(target))
    if pa.types.is_floating(source):
        return bool(pa.types.is_floating(target) and target.bit_width >= source.bit_width)
    return bool((pa.types.is_string(source) or pa.types.is_large_string(source)) and pa.types.is_string(target))


def conform(column: pa.Array | pa.ChunkedArray, target: pa.DataType, name: str) -> pa.Array | pa.ChunkedArray:
    """Convert `column` to `target`, with the same values. NaN and infinity become null, which means unknown.

    Raises:
        UnusableFeature: `target` can't represent a value exactly (an int64 beyond int32, or beyond 2**53 in a double).
    """
    if pa.types.is_timestamp(column.type) and pa.types.is_timestamp(target) and column.type.tz and not target.tz:
        column = pc.cast(column, pa.timestamp(column.type.unit, "UTC"))
        column = pc.cast(pc.cast(column, pa.int64()), pa.timestamp(column.type.unit))
    if column.type != target:
        if target == pa.float64() and column.null_count == 0 and isinstance(column, pa.Array):
            wide = _widened(column)
            if wide is not None:
                return wide
        try:
            column = pc.cast(column, target)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            doing = f"converting {name!r} from {column.type} to {target}, as the model expects"
            raise UnusableFeature(doing, "a value can't be represented in that type") from None
    if pa.types.is_floating(target) and not _all_finite(column):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, target))
    return column


def or_null(column: pa.Array | pa.ChunkedArray, target: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Convert `column` to `target`, which `holds_every_value` allows. Values that don't fit exactly become null."""
    converted = pc.cast(column, target, safe=False)
    exact = pc.equal(pc.cast(converted, column.type, safe=False), column)
    return pc.if_else(exact, converted, pa.scalar(None, target))


def conform_or_null(column: pa.Array | pa.ChunkedArray, target: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Convert `column` as `conform` does. Values that `target` can't represent exactly become null."""
    try:
        return conform(column, target, "")
    except UnusableFeature:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp(column.type.unit))
        return or_null(column, target)


def _widened(column: pa.Array) -> pa.Array | None:
    """Convert numbers without nulls to finite doubles, in half of Arrow's time for a few; None if that is inexact."""
    if column.type == pa.float32():
        values = column.to_numpy().astype(np.float64)
        return pa.array(values) if np.isfinite(values).all() else None
    if column.type == pa.int64() and len(column):
        values = column.to_numpy()
        if values.min() >= -MAX_EXACT_INTEGER and values.max() <= MAX_EXACT_INTEGER:
            return pa.array(values.astype(np.float64))
    return None


def as_stored(column: pa.Array | pa.ChunkedArray, declared: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Convert values of an offline source to those that an online store keeps for a declared type.

    Feast writes timestamps in seconds, and NaN as null.

    Raises:
        ArrowInvalid: `declared` can't represent a value exactly. Doubles are rounded to floats instead.
        ArrowNotImplementedError: Arrow can't convert between the types.
    """
    if pa.types.is_timestamp(declared) and pa.types.is_timestamp(column.type):
        column = pc.floor_temporal(column, unit="second")
    if column.type != declared:
        column = pc.cast(column, declared)
    if pa.types.is_floating(declared) and not _all_finite(column):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, declared), column)
    return column


def _all_finite(column: pa.Array | pa.ChunkedArray) -> bool:
    # For a few values, this takes a tenth of the time of Arrow's own functions.
    return column.null_count == 0 and bool(np.isfinite(column.to_numpy()).all())
