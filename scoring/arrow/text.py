"""Formats Arrow values for display, including those that Python can't represent."""

import pyarrow as pa
import pyarrow.compute as pc

NOT_PRINTABLE = "(not shown)"
# Types that hold strings, in addition to `string`. Older Parquet writers mark strings as bytes.
STRINGS = (
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def to_string(value: pa.Scalar) -> str:
    """Format a value like Python, or else like Arrow, or else as `(not shown)`; empty for a null. Never raises.

    Python can't represent dates before year 1 or after 9999, unknown time zones, or dicts with duplicate keys.
    """
    try:
        # Check `is_valid`, because some nulls can't be converted, either.
        return str(value.as_py()) if value.is_valid else ""
    except Exception:  # exception types differ between Arrow types: OverflowError, UnicodeDecodeError, pytz's
        return _printed_by_arrow(value)


def _printed_by_arrow(value: pa.Scalar) -> str:
    try:
        if pa.types.is_timestamp(value.type):
            # Its zone may be unknown. Without a zone, it is printed in UTC.
            value = pc.cast(value, pa.timestamp(value.type.unit))
        if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
            return str(value.as_buffer().to_pybytes().decode(errors="replace"))
        return str(pc.cast(value, pa.string()).as_py())
    except Exception:  # displaying a value must never fail
        return NOT_PRINTABLE


def plain_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode dictionaries, and convert UUIDs, bytes and other types of strings to `string`. Keep all other columns.

    Raises:
        ArrowInvalid: the bytes are not UTF-8.
    """
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if isinstance(column.type, pa.UuidType):
        return pa.chunked_array([[None if each is None else str(each) for each in column.to_pylist()]], pa.string())
    return pc.cast(column, pa.string()) if any(kind(column.type) for kind in STRINGS) else column
