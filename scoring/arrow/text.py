"""Arrow values as strings for people, those that Python can't hold included."""

import pyarrow as pa
import pyarrow.compute as pc

NOT_PRINTABLE = "(not shown)"


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
    """Dictionary-encoded columns decoded, other kinds of strings as `string`, all other columns unchanged."""
    kinds = (pa.types.is_dictionary, pa.types.is_large_string, pa.types.is_string_view)
    if not any(kind(column.type) for kind in kinds):
        return column
    return pc.cast(column, column.type.value_type if pa.types.is_dictionary(column.type) else pa.string())
