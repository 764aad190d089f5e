"""Arrow values as strings for people, those that Python can't hold included."""

import pyarrow as pa
import pyarrow.compute as pc

NOT_PRINTABLE = "(not shown)"
# Kinds of strings besides `string`. Older writers of Parquet mark strings as bytes.
STRINGS = (
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def to_string(value: pa.Scalar) -> str:
    """The value as Python prints it, else as Arrow does, else `(not shown)`; empty for a null. Never raises.

    Python has no date before year 1 or after 9999, no unknown time zone, and no dict with a duplicate key.
    """
    try:
        # The scalar itself is asked whether it is null: the values of some nulls can't be converted, either.
        return str(value.as_py()) if value.is_valid else ""
    except Exception:  # each type raises its own kinds: OverflowError, UnicodeDecodeError, pytz's
        return _printed_by_arrow(value)


def _printed_by_arrow(value: pa.Scalar) -> str:
    try:
        if pa.types.is_timestamp(value.type):
            # Its zone may be unknown. Without a zone it is in UTC.
            value = pc.cast(value, pa.timestamp(value.type.unit))
        if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
            return str(value.as_buffer().to_pybytes().decode(errors="replace"))
        return str(pc.cast(value, pa.string()).as_py())
    except Exception:  # display is not worth a failure
        return NOT_PRINTABLE


def plain_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries decoded, UUIDs, bytes and other kinds of strings as `string`, all other columns unchanged.

    Raises:
        ArrowInvalid: bytes are not UTF-8.
    """
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if isinstance(column.type, pa.UuidType):
        return pa.chunked_array([[None if each is None else str(each) for each in column.to_pylist()]], pa.string())
    return pc.cast(column, pa.string()) if any(kind(column.type) for kind in STRINGS) else column
