"""Columns as the bytes that Feast's online stores keep, whole columns at a time.

Feast makes a protobuf message of each single value before it writes it (0.67), which is most of the time and memory of
its materialization. The same bytes are made here of Arrow columns, for each pair of declared and found type whose
outcome does not depend on the other rows. `row_encoding` compares them with
Feast's own before they are used.
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

# How a protobuf message marks what follows: field number and kind (https://protobuf.dev/programming-guides/encoding).
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MOST_VARINT_BYTES = 10
EMPTY = b""
"""A Value that holds nothing: a null."""

Encode = Callable[[pa.Array], list[bytes]]


class UnsupportedEncoding(ValueError):
    """These values are not of the kind that is known to come out as Feast's; its own code must write them."""


class Encoder(msgspec.Struct, frozen=True):
    """How values of one declared type are encoded, and from which Arrow types."""

    accepts: Callable[[pa.DataType], bool]
    encode: Encode


def encoder(declared: ValueType, found: pa.DataType) -> Encode | None:
    """What makes serialized Values of a column, one for each row; None where Feast's own code must.

    Args:
        declared: the type that the feature view declares.
        found: the type that the source has. Feast's own conversion may refuse it, or depend on the other rows.
    """
    known = ENCODERS.get(declared)
    return known.encode if known is not None and known.accepts(found) else None


def encode_timestamps(microseconds: np.ndarray) -> list[bytes]:
    """Serialized protobuf Timestamps of times in microseconds since 1970, int64 (n,)."""
    seconds, rest = np.divmod(microseconds, 1_000_000)
    # A field that is zero is left out: a Timestamp's have no presence of their own.
    parts = [
        np.where(part != 0, np.array(_varints(tag, part), object), EMPTY)
        for tag, part in ((1 << 3 | VARINT, seconds), (2 << 3 | VARINT, rest * 1000))
    ]
    return list(parts[0] + parts[1])


def to_microseconds(moments: pa.Array) -> np.ndarray:
    """Microseconds since 1970, int64 (n,), of timestamps; finer ones are cut, one without a zone is UTC.

    Raises:
        UnsupportedEncoding: no timestamps, or a null among them.
    """
    if not pa.types.is_timestamp(moments.type) or moments.null_count:
        raise UnsupportedEncoding("an event timestamp is null or no timestamp")
    unit = pa.timestamp("us", moments.type.tz)
    if moments.type.unit != "ns":
        return _numbers(moments.cast(unit).cast(pa.int64()))
    return np.asarray(np.floor_divide(_numbers(moments.cast(pa.int64())), 1000))


def _numbers(column: pa.Array) -> np.ndarray:
    """The values as an array; where there is a null, any value."""
    if column.null_count:
        column = pc.fill_null(column, pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type))
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _packed(rows: np.ndarray) -> np.ndarray:
    """Rows of bytes, uint8 (n, width), as an array of n bytes objects."""
    width = rows.shape[1]
    packed: Any = np.ascontiguousarray(rows).view(f"V{width}").ravel()
    return np.asarray(packed.astype(object))


def _fixed(tag: int, values: np.ndarray) -> list[bytes]:
    """The tag, then the value's own bytes, for each value."""
    rows = np.empty((len(values), 1 + values.itemsize), np.uint8)
    rows[:, 0] = tag
    rows[:, 1:] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize)
    return list(_packed(rows))


def _varints(tag: int, values: np.ndarray) -> list[bytes]:
    """The tag, then the value in groups of seven bits, for each value; a negative one is that plus 2**64."""
    left = values.astype(np.int64).view(np.uint64)
    lengths = np.ones(len(left), np.int64)
    for place in range(1, MOST_VARINT_BYTES):
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


def _with_nulls(column: pa.Array, encoded: list[bytes], missing: np.ndarray | None = None) -> list[bytes]:
    if missing is None:
        missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False)) if column.null_count else None
    if missing is not None:
        for row in np.flatnonzero(missing):
            encoded[row] = EMPTY
    return encoded


def _whole_numbers(field: int, lowest: int, highest: int) -> Encode:
    tag = field << 3 | VARINT

    def encode(column: pa.Array) -> list[bytes]:
        values = _numbers(column)
        if len(values) and not (lowest <= int(values.min()) and int(values.max()) <= highest):
            raise UnsupportedEncoding("a value is out of the declared type's range")
        return _with_nulls(column, _varints(tag, values))

    return encode


def _floats(field: int, kind: int, stored: str) -> Encode:
    tag = field << 3 | kind

    def encode(column: pa.Array) -> list[bytes]:
        values = _numbers(column).astype(np.float64)
        missing = np.isnan(values)
        if column.null_count:
            missing |= np.asarray(column.is_null().to_numpy(zero_copy_only=False))
        with np.errstate(over="ignore"):  # what a float can't hold becomes infinite, as in protobuf
            return _with_nulls(column, _fixed(tag, values.astype(stored)), missing)

    return encode


def _texts(field: int, *, encoded: bool) -> Encode:
    heads = [bytes([field << 3 | LENGTH, length]) for length in range(128)]

    def encode(column: pa.Array) -> list[bytes]:
        contents = column.to_pylist() if not encoded else column.cast(_binary_of(column.type)).to_pylist()
        return [
            EMPTY if content is None
            else heads[len(content)] + content if len(content) < 128
            else _varints(field << 3 | LENGTH, np.array([len(content)]))[0] + content
            for content in contents
        ]  # fmt: skip

    return encode


def _binary_of(text: pa.DataType) -> pa.DataType:
    return pa.large_binary() if pa.types.is_large_string(text) else pa.binary()


def _seconds(field: int) -> Encode:
    tag = field << 3 | VARINT
    a_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

    def encode(column: pa.Array) -> list[bytes]:
        seconds = np.floor_divide(_numbers(column.cast(pa.int64())), a_second[column.type.unit])
        if column.null_count:  # Feast keeps them as numpy's "not a time"
            seconds[np.asarray(column.is_null().to_numpy(zero_copy_only=False))] = np.iinfo(np.int64).min
        return _varints(tag, seconds)

    return encode


def _feasts_own(declared: ValueType) -> Encode:
    """For types of which each row's outcome hangs on that row alone, but that are not worth a way of their own."""

    def encode(column: pa.Array) -> list[bytes]:
        if pa.types.is_list(column.type) and column.flatten().null_count:
            raise UnsupportedEncoding("a list holds a null")
        # Feast's materialization sends all columns through a pandas frame.
        column = pa.Array.from_pandas(column.to_pandas())
        values = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), declared)
        return [value.SerializeToString() for value in values]

    return encode


def _is_exact_list(of: pa.DataType) -> Callable[[pa.DataType], bool]:
    return lambda found: pa.types.is_list(found) and found.value_type == of


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) or found in (pa.float32(), pa.float64()))


def _is_text(found: pa.DataType) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def _is_bytes(found: pa.DataType) -> bool:
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def _is_whole(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) and found != pa.uint64())


def _field(name: str) -> int:
    return int(Value.DESCRIPTOR.fields_by_name[name].number)


def _bytes_encoder(field: str) -> Encoder:
    return Encoder(_is_bytes, _texts(_field(field), encoded=False))


def _encode_bools(column: pa.Array) -> list[bytes]:
    return _with_nulls(column, _varints(_field("bool_val") << 3 | VARINT, _numbers(column).astype(np.int64)))


ENCODERS: Mapping[ValueType, Encoder] = {
    ValueType.INT32: Encoder(_is_whole, _whole_numbers(_field("int32_val"), -(2**31), 2**31 - 1)),
    ValueType.INT64: Encoder(_is_whole, _whole_numbers(_field("int64_val"), -(2**63), 2**63 - 1)),
    ValueType.FLOAT: Encoder(_is_number, _floats(_field("float_val"), FOUR_BYTES, "<f4")),
    # Feast refuses a Float64 feature whose source has any other type.
    ValueType.DOUBLE: Encoder(
        lambda found: found in (pa.float64(), pa.int64()), _floats(_field("double_val"), EIGHT_BYTES, "<f8")
    ),
    ValueType.BOOL: Encoder(pa.types.is_boolean, _encode_bools),
    ValueType.STRING: Encoder(_is_text, _texts(_field("string_val"), encoded=True)),
    ValueType.BYTES: _bytes_encoder("bytes_val"),
    ValueType.PDF_BYTES: _bytes_encoder("bytes_val"),
    ValueType.IMAGE_BYTES: _bytes_encoder("bytes_val"),
    ValueType.UNIX_TIMESTAMP: Encoder(pa.types.is_timestamp, _seconds(_field("unix_timestamp_val"))),
    **{
        declared: Encoder(_is_exact_list(of), _feasts_own(declared))
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
    """What Feast's SQL stores keep as text beside each Value: numbers, bools and texts; None for all other."""
    values: list[Any]
    if declared is ValueType.STRING:
        return list(column.to_pylist())
    if declared in (ValueType.FLOAT, ValueType.DOUBLE):
        with np.errstate(over="ignore"):
            values = _numbers(column).astype(np.float64).astype("f4" if declared is ValueType.FLOAT else "f8").tolist()
    elif declared in (ValueType.INT32, ValueType.INT64):
        values = _numbers(column).tolist()
    elif declared is ValueType.BOOL:
        values = _numbers(column).astype(bool).tolist()
    else:
        return [None] * len(encoded)
    return [str(value) if each else None for value, each in zip(values, encoded, strict=True)]
