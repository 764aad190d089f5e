"""Encodes whole columns as online stores keep them.

Feast creates a protobuf message for each value before it writes it (0.67), which takes most of the time and memory of
its materialization. The encoders here create the same bytes from Arrow columns, for each pair of declared and source
type whose result does not depend on other rows. `row_encoding` compares them with Feast's before they are used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import ValueType
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values

# Protobuf wire types (https://protobuf.dev/programming-guides/encoding).
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MAX_VARINT_BYTES = 10
NULL = b""
"""A Value without content."""

Encode = Callable[[pa.Array], list[bytes]]


class UnsupportedEncoding(ValueError):
    """It is unknown how Feast would encode these values, so Feast's own code must write them."""


class Encoder(msgspec.Struct, frozen=True):
    """The encoder of one declared type, and the Arrow types that it accepts."""

    accepts: Callable[[pa.DataType], bool]
    encode: Encode


def encoder(declared: ValueType, source: pa.DataType) -> Encode | None:
    """Return the function that encodes a column as serialized Values, one per row; None if only Feast's code can.

    Args:
        declared: the type that the feature view declares.
        source: the source's type. Feast's own conversion may refuse it, or its result may depend on other rows.
    """
    known = ENCODERS.get(declared)
    return known.encode if known is not None and known.accepts(source) else None


def encode_timestamps(microseconds: np.ndarray) -> list[bytes]:
    """Serialize times in microseconds since 1970, int64 (n,), as protobuf Timestamps."""
    seconds, rest = np.divmod(microseconds, 1_000_000)
    # protobuf omits a field that is zero, because a Timestamp's fields have no explicit presence.
    parts = [
        np.where(part != 0, np.array(_varints(tag, part), object), b"")
        for tag, part in ((1 << 3 | VARINT, seconds), (2 << 3 | VARINT, rest * 1000))
    ]
    return list(parts[0] + parts[1])


def to_microseconds(timestamps: pa.Array) -> np.ndarray:
    """Convert timestamps to microseconds since 1970, int64 (n,), rounded down. Timestamps without a zone are in UTC.

    Raises:
        UnsupportedEncoding: the column does not have a timestamp type, or contains a null.
    """
    if not pa.types.is_timestamp(timestamps.type) or timestamps.null_count:
        raise UnsupportedEncoding("an event timestamp is null or not a timestamp")
    if timestamps.type.unit != "ns":
        return _numbers(timestamps.cast(pa.timestamp("us", timestamps.type.tz)).cast(pa.int64()))
    return np.asarray(np.floor_divide(_numbers(timestamps.cast(pa.int64())), 1000))


def nulls(column: pa.Array) -> np.ndarray:
    """Return where the column is null, bool (n,)."""
    if not column.null_count:
        return np.zeros(len(column), bool)
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))


def _numbers(column: pa.Array) -> np.ndarray:
    """Return the values as an array, with any value for a null."""
    if column.null_count:
        column = pc.fill_null(column, pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type))
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _packed(rows: np.ndarray) -> np.ndarray:
    """Convert rows of bytes, uint8 (n, width), to an array of n bytes objects."""
    packed: Any = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel()
    return np.asarray(packed.astype(object))


def _varints(tag: int, values: np.ndarray) -> list[bytes]:
    """Encode each value as the tag and groups of seven bits. 2**64 is added to a negative value."""
    left = values.astype(np.int64).view(np.uint64)
    lengths = np.ones(len(left), np.int64)
    for place in range(1, MAX_VARINT_BYTES):
        lengths += left >= np.uint64(1 << 7 * place)
    rows = np.empty((len(left), 1 + int(lengths.max(initial=1))), np.uint8)
    rows[:, 0] = tag
    for place in range(rows.shape[1] - 1):
        group = (left >> np.uint64(7 * place)).astype(np.uint8) & 0x7F
        rows[:, 1 + place] = group | np.where(lengths > place + 1, 0x80, 0).astype(np.uint8)
    encoded = np.empty(len(left), object)
    for length in np.unique(lengths):
        chosen = lengths == length
        encoded[chosen] = _packed(rows[chosen, : 1 + int(length)])
    return list(encoded)


def _with_nulls(encoded: list[bytes], missing: np.ndarray) -> list[bytes]:
    for row in np.flatnonzero(missing):
        encoded[row] = NULL
    return encoded


def _tag(field: str, kind: int) -> int:
    return int(Value.DESCRIPTOR.fields_by_name[field].number) << 3 | kind


def _integers(field: str, lowest: int, highest: int) -> Encode:
    tag = _tag(field, VARINT)

    def encode(column: pa.Array) -> list[bytes]:
        values = _numbers(column)
        if len(values) and not (lowest <= int(values.min()) and int(values.max()) <= highest):
            raise UnsupportedEncoding("a value is out of the declared type's range")
        return _with_nulls(_varints(tag, values), nulls(column))

    return encode


def _floats(field: str, kind: int, stored: str) -> Encode:
    tag = _tag(field, kind)

    def encode(column: pa.Array) -> list[bytes]:
        values = _numbers(column).astype(np.float64)
        with np.errstate(over="ignore"):  # values beyond a float's range become infinite, as in protobuf
            content = np.ascontiguousarray(values.astype(stored))
        rows = np.empty((len(values), 1 + content.itemsize), np.uint8)
        rows[:, 0] = tag
        rows[:, 1:] = content.view(np.uint8).reshape(len(values), content.itemsize)
        return _with_nulls(list(_packed(rows)), np.isnan(values) | nulls(column))

    return encode


def _bytes(field: str) -> Encode:
    tag = _tag(field, LENGTH)
    heads = [bytes([tag, length]) for length in range(128)]

    def encode(column: pa.Array) -> list[bytes]:
        large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
        return [
            NULL if content is None
            else heads[len(content)] + content if len(content) < 128
            else _varints(tag, np.array([len(content)]))[0] + content
            for content in column.cast(pa.large_binary() if large else pa.binary()).to_pylist()
        ]  # fmt: skip

    return encode


def _encode_seconds(column: pa.Array) -> list[bytes]:
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    seconds = np.floor_divide(_numbers(column.cast(pa.int64())), per_second)
    # Feast stores NaT for a null.
    return _varints(_tag("unix_timestamp_val", VARINT), np.where(nulls(column), np.iinfo(np.int64).min, seconds))


def _by_feast(declared: ValueType) -> Encode:
    """Return an encoder that calls Feast, for rare types whose result for a row does not depend on other rows."""

    def encode(column: pa.Array) -> list[bytes]:
        if pa.types.is_list(column.type) and column.flatten().null_count:
            raise UnsupportedEncoding("a list holds a null")
        # Feast's materialization sends all columns through a pandas frame.
        column = pa.Array.from_pandas(column.to_pandas())
        values = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), declared)
        return [value.SerializeToString() for value in values]

    return encode


def is_integer(source: pa.DataType) -> bool:
    """Return whether int64 can represent every value of the type."""
    return bool(pa.types.is_integer(source) and source != pa.uint64())


def is_string(source: pa.DataType) -> bool:
    """Return whether it is a string type that Feast's sources have."""
    return bool(pa.types.is_string(source) or pa.types.is_large_string(source))


def is_binary(source: pa.DataType) -> bool:
    """Return whether it is a binary type that Feast's sources have."""
    return bool(pa.types.is_binary(source) or pa.types.is_large_binary(source))


def _is_number(source: pa.DataType) -> bool:
    return bool(pa.types.is_integer(source) or source in (pa.float32(), pa.float64()))


def _is_double_or_long(source: pa.DataType) -> bool:
    return source in (pa.float64(), pa.int64())  # Feast refuses a Float64 feature whose source has any other type


def _is_list(of: pa.DataType) -> Callable[[pa.DataType], bool]:
    return lambda source: pa.types.is_list(source) and source.value_type == of


ENCODERS: Mapping[ValueType, Encoder] = {
    ValueType.INT32: Encoder(is_integer, _integers("int32_val", -(2**31), 2**31 - 1)),
    ValueType.INT64: Encoder(is_integer, _integers("int64_val", -(2**63), 2**63 - 1)),
    ValueType.BOOL: Encoder(pa.types.is_boolean, _integers("bool_val", 0, 1)),
    ValueType.FLOAT: Encoder(_is_number, _floats("float_val", FOUR_BYTES, "<f4")),
    ValueType.DOUBLE: Encoder(_is_double_or_long, _floats("double_val", EIGHT_BYTES, "<f8")),
    ValueType.STRING: Encoder(is_string, _bytes("string_val")),
    ValueType.UNIX_TIMESTAMP: Encoder(pa.types.is_timestamp, _encode_seconds),
    **{
        declared: Encoder(is_binary, _bytes("bytes_val"))
        for declared in (ValueType.BYTES, ValueType.PDF_BYTES, ValueType.IMAGE_BYTES)
    },
    **{
        declared: Encoder(_is_list(of), _by_feast(declared))
        for declared, of in {
            ValueType.INT32_LIST: pa.int32(),
            ValueType.INT64_LIST: pa.int64(),
            ValueType.FLOAT_LIST: pa.float32(),
            ValueType.DOUBLE_LIST: pa.float64(),
            ValueType.BOOL_LIST: pa.bool_(),
            ValueType.STRING_LIST: pa.string(),
            ValueType.BYTES_LIST: pa.binary(),
            ValueType.UNIX_TIMESTAMP_LIST: pa.timestamp("us"),
        }.items()
    },
}


def stored_text(declared: ValueType, encoded: Sequence[bytes], column: pa.Array) -> list[str | None]:
    """Return the text that Feast's SQL stores keep with numbers, booleans and strings; None for other types."""
    kinds = {ValueType.FLOAT: "f4", ValueType.DOUBLE: "f8", ValueType.BOOL: "?"}
    if declared is ValueType.STRING:
        return list(column.to_pylist())
    if declared not in kinds and declared not in (ValueType.INT32, ValueType.INT64):
        return [None] * len(encoded)
    values = _numbers(column)
    if declared in kinds:
        with np.errstate(over="ignore"):
            values = values.astype(np.float64).astype(kinds[declared])
    return [str(value) if each else None for value, each in zip(values.tolist(), encoded, strict=True)]
