"""Arrow values as text for people, also those that Python can't hold."""

import pyarrow as pa
import pyarrow.compute as pc

NOT_SHOWN = "(not shown)"


def text_of(value: pa.Scalar) -> str:
    """The value as Python shows it, else as Arrow does, else `(not shown)`; nothing for a null. Never raises.

    Python has no date before year 1 or beyond 9999, no unknown time zone, no dict with a key twice.
    """
    try:
        # Validity is asked of the scalar: the values of some nulls can't be made, either.
        return str(value.as_py()) if value.is_valid else ""
    except Exception:  # each type raises its own kinds: OverflowError, UnicodeDecodeError, pytz's
        return _as_arrow_shows(value)


def _as_arrow_shows(value: pa.Scalar) -> str:
    try:
        if pa.types.is_timestamp(value.type):
            # Its zone may be unknown: without it, the moment is one in UTC.
            value = pc.cast(value, pa.timestamp(value.type.unit))
        if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
            return str(value.as_buffer().to_pybytes().decode(errors="replace"))
        return str(pc.cast(value, pa.string()).as_py())
    except Exception:  # a picture of a value is worth no failure
        return NOT_SHOWN


def plain_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kinds = (pa.types.is_dictionary, pa.types.is_large_string, pa.types.is_string_view)
    if not any(kind(column.type) for kind in kinds):
        return column
    return pc.cast(column, column.type.value_type if pa.types.is_dictionary(column.type) else pa.string())
