"""Decodes serialized Values into arrays, vectorized if they share a wire format.

Values of a fixed length are read in place, and integers are unpacked from their seven-bit groups. All other values, and
those with an unexpected wire format, are parsed one by one by protobuf.
"""

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import NULL_TIMESTAMP_INT_VALUE
from google.protobuf.timestamp_pb2 import Timestamp

from scoring.arrow.signature import holds_every_value
from scoring.errors import READING, UnusableFeature

VALUE_FIELDS: dict[pa.DataType, str] = {
    pa.float32(): "float_val",
    pa.float64(): "double_val",
    pa.int32(): "int32_val",
    pa.int64(): "int64_val",
    pa.bool_(): "bool_val",
    pa.string(): "string_val",
}
"""Types that can be decoded → the field of Feast's Value that holds them."""

# Fewer values than this are decoded one by one as fast as together.
FEW = 16
# A tag, and at most ten groups of seven bits, the lowest first; all but the last have the eighth bit set.
MAX_GROUPS = 10
CONTINUED = 0x80
MASK = 2**64 - 1
WEIGHTS = np.uint64(1) << 7 * np.arange(MAX_GROUPS, dtype=np.uint64)


def decode_timestamps(values: Sequence[bytes | None]) -> np.ndarray:
    """Decode serialized Timestamps to event times in seconds since 1970, float64 (n,); 0 for None."""
    present = _present(values)
    event_s = np.zeros(len(values))
    places: Any = slice(None)
    if len(present) < len(values):
        places = [place for place, value in enumerate(values) if value]
    if present and present.count(present[0]) == len(present):  # as when they were materialized together
        event_s[places] = _seconds(present[0])
        return event_s
    distinct = set(present)
    seconds: Any = _unpack_integers(present, SECONDS_TAG) if len(distinct) >= FEW else None
    if seconds is None:
        seconds_of = {value: _seconds(value) for value in distinct}
        seconds = list(map(seconds_of.__getitem__, present))
    event_s[places] = seconds
    return event_s


@functools.lru_cache(maxsize=4096)
def _seconds(value: bytes) -> float:
    parsed = Timestamp.FromString(value)
    return float(parsed.seconds + parsed.nanos * 1e-9)


class Layout(NamedTuple):
    """How the numbers of one type are serialized."""

    tag: int
    packed: np.dtype[Any] | None
    """The layout of a Value of a fixed length; None for integers of seven-bit groups."""
    boolean: bool
    limits: tuple[int, int] | None
    """The least and the greatest integer, if int64 has others."""

    def within_limits(self, integers: np.ndarray) -> np.ndarray | None:
        """Return unpacked int64 as integers or booleans of the type; None if it does not have one of them."""
        if self.boolean:
            return integers.astype(bool)
        if self.limits is not None and not self.limits[0] <= integers.min() <= integers.max() <= self.limits[1]:
            return None
        return integers


def decode_numbers(columns: Sequence[Sequence[bytes | None]], layout: Layout) -> np.ndarray | None:
    """Decode several columns of n serialized Values together to an array (n_columns, n).

    None if a value is missing or has an unexpected wire format: `decode_values` decodes such columns one by one.
    """
    values = list(itertools.chain.from_iterable(columns))
    unpacked = _unpack(values, layout) if all(values) else None  # type: ignore[arg-type]
    return None if unpacked is None else unpacked.reshape(len(columns), -1)


def decode_values(values: Sequence[bytes | None], dtype: pa.DataType) -> pa.Array:
    """Decode serialized Values to an array (n,) of `dtype`; null for None.

    Args:
        values: the Values, as stored.
        dtype: one of VALUE_FIELDS.

    Raises:
        google.protobuf.message.DecodeError: one is not a Value.
        UnusableFeature: a value was written under another declaration, and this type can't represent it.
    """
    present = _present(values)
    layout = LAYOUTS.get(dtype)
    unpacked = None if layout is None else _unpack(present, layout)
    if unpacked is None:
        return as_declared([plain_value(Value.FromString(value)) if value else None for value in values], dtype)
    if len(present) == len(values):
        return pa.array(unpacked, dtype)
    spread = np.zeros(len(values), unpacked.dtype)
    missing = np.fromiter((not value for value in values), bool, len(values))
    spread[~missing] = unpacked
    return pa.array(spread, dtype, mask=missing)


class SeparateValues(msgspec.Struct, frozen=True):
    """The serialized values of several fields of n rows, each an object."""

    columns: Sequence[Sequence[bytes | None]]

    def timestamps(self, place: int) -> np.ndarray:
        """Decode a field's Timestamps: see `decode_timestamps`."""
        return decode_timestamps(self.columns[place])

    def numbers(self, places: Sequence[int], layout: Layout) -> np.ndarray | None:
        """Decode the Values of several fields: see `decode_numbers`."""
        return decode_numbers([self.columns[place] for place in places], layout)

    def array(self, place: int, dtype: pa.DataType) -> pa.Array:
        """Decode a field's Values: see `decode_values`."""
        return decode_values(self.columns[place], dtype)

    def types(self) -> set[type]:
        """Return the types of all values."""
        return {kind for column in self.columns for kind in map(type, column)}


def _present(values: Sequence[bytes | None]) -> Sequence[bytes]:
    if all(values):
        return values  # type: ignore[return-value]
    if not {type(value) for value in values if not value} <= {bytes, type(None)}:
        raise TypeError("a store keeps bytes")
    return [value for value in values if value]


def _unpack(values: Sequence[bytes], layout: Layout) -> np.ndarray | None:
    if not values:
        return None
    if layout.packed is not None:
        return _unpack_fixed(values, layout.packed, layout.tag)
    integers = _unpack_integers(values, layout.tag)
    return None if integers is None else layout.within_limits(integers)


def _unpack_fixed(values: Sequence[bytes], packed: np.dtype[Any], tag: int) -> np.ndarray | None:
    if set(map(len, values)) != {packed.itemsize}:
        return None
    unpacked = np.frombuffer(b"".join(values), packed)
    return unpacked["value"] if (unpacked["tag"] == tag).all() else None


def _unpack_integers(values: Sequence[bytes], tag: int) -> np.ndarray | None:
    """Unpack int64 (n,) from messages that contain one integer only; None if they differ from that."""
    if len(values) < FEW:
        return _unpack_few_integers(values, tag)
    lengths = set(map(len, values))
    width = max(lengths)
    if width > 1 + MAX_GROUPS or min(lengths) == 1:
        return None
    if len(lengths) == 1:
        packed = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), width)
        last: Any = width - 2
    else:
        packed = np.array(values, f"S{width}").view(np.uint8).reshape(len(values), width)  # padded with zeros
        last = np.fromiter(map(len, values), np.int64, len(values)) - 2
    groups = packed[:, 1:]
    follow = groups >= CONTINUED
    if (packed[:, 0] != tag).any() or follow[:, -1].any() or (np.argmin(follow, axis=1) != last).any():
        return None
    return ((groups & 0x7F).astype(np.uint64) @ WEIGHTS[: width - 1]).view(np.int64)


def _unpack_few_integers(values: Sequence[bytes], tag: int) -> np.ndarray | None:
    if set(map(type, values)) != {bytes}:
        return None
    integers = []
    for value in values:
        integer, last = 0, len(value) - 2
        if value[0] != tag or not 0 <= last < MAX_GROUPS:
            return None
        for place, group in enumerate(value[1:]):
            if (group >= CONTINUED) is (place == last):
                return None
            integer |= (group & 0x7F) << 7 * place
        integers.append(integer & MASK)
    return np.array(integers, np.uint64).view(np.int64)


def _tag(message: Any, field: str) -> int:
    setattr(message, field, 1)
    return int(message.SerializeToString()[0])


SECONDS_TAG = _tag(Timestamp(), "seconds")
PACKED: dict[pa.DataType, np.dtype[Any]] = {
    pa.float32(): np.dtype([("tag", "u1"), ("value", "<f4")]),
    pa.float64(): np.dtype([("tag", "u1"), ("value", "<f8")]),
}
LAYOUTS = {
    dtype: Layout(
        _tag(Value(), field),
        PACKED.get(dtype),
        dtype == pa.bool_(),
        (-(2**31), 2**31 - 1) if dtype == pa.int32() else None,
    )
    for dtype, field in VALUE_FIELDS.items()
    if dtype != pa.string()
}
"""Types whose Values are unpacked. To find a type takes 1 µs, so a reader that has it once keeps its layout."""


def plain_value(value: Any) -> Any:
    """Return the content of a Feast Value; None if it is empty."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    found = getattr(value, kind)
    # Feast writes a null among timestamps as a number.
    return None if kind == "unix_timestamp_val" and found == NULL_TIMESTAMP_INT_VALUE else found


def as_declared(values: list[Any], dtype: pa.DataType) -> pa.Array:
    """Return values from a store as an array (n,) of their feature's declared type.

    Args:
        values: Python's bool, int, float, str and so on; None means unknown.
        dtype: the declared type. The values have another type if the declaration changed after they were written.

    Raises:
        UnusableFeature: a value can't be represented in the declared type.
    """
    if pa.types.is_integer(dtype) and set(map(type, values)) == {int}:
        with contextlib.suppress(pa.ArrowInvalid, OverflowError):
            return pa.array(values, dtype)
    try:
        if pa.types.is_timestamp(dtype):  # Feast writes seconds since 1970
            return pa.array(values, pa.timestamp("s", "UTC")).cast(dtype)
        found = pa.array(values)
        if holds_every_value(found.type, dtype) or pa.types.is_floating(dtype) or pa.types.is_null(found.type):
            return found.cast(dtype)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise UnusableFeature(READING, f"a feature declared {dtype} was written as something else.") from None
    # A cast would round 0.24 down to the integer 0.
    raise UnusableFeature(READING, f"a feature declared {dtype} was written as {found.type}.")
