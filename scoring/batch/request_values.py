"""Convert a column of a batch request to the type that is needed, or refuse its first value that does not fit."""

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import plain_strings, to_string
from scoring.arrow.timestamps import TIMESTAMP, to_timestamps
from scoring.errors import BatchRequestError

INTEGER = r"^\s*[+-]?\d+\s*$"
VALUE_CHARACTERS = 40
# What a value that does not fit raises.
MISFITS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError)


def convert_column(
    place: str, name: str, column: pa.ChunkedArray, first_row: int, target: pa.DataType
) -> pa.ChunkedArray:
    """A column of the request at `place`, whose rows are numbered from `first_row` + 1, as `target`. Nulls stay nulls.

    Raises:
        BatchRequestError: names the first row whose value does not fit.
    """
    try:
        return _converted(column, target)
    except MISFITS:
        row = _first_misfit(column, target)
    text = to_string(column[row])
    value = text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"
    wanted = "an ISO 8601 date and time of the years 1678 to 2261" if pa.types.is_timestamp(target) else str(target)
    raise BatchRequestError(place, f"{value!r} is not {wanted}.", column=name, row=first_row + row + 1) from None


def _first_misfit(column: pa.ChunkedArray, target: pa.DataType) -> int:
    start, length = 0, len(column)
    while length > 1:
        half = length // 2
        try:
            _converted(column.slice(start, half), target)
        except MISFITS:
            length = half
        else:
            start, length = start + half, length - half
    return start


def _converted(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Strings, numbers or timestamps as `target`; raises one of MISFITS."""
    column = plain_strings(column)
    if pa.types.is_null(column.type):
        return pc.cast(column, target)  # the caller refuses a null where a value is needed
    if pa.types.is_timestamp(target):
        timestamps = to_timestamps(column)
        return timestamps if target == TIMESTAMP else pc.cast(pc.cast(timestamps, pa.timestamp("us")), target)
    if pa.types.is_string(column.type):
        if pa.types.is_integer(target) and not pc.all(pc.match_substring_regex(column, INTEGER), min_count=0).as_py():
            raise pa.ArrowInvalid("not an integer")
        if pa.types.is_string(target):
            return pc.cast(pc.cast(column, pa.binary()), target)  # validates UTF-8: a file may hold any bytes
        if target == pa.float32():
            column = pc.cast(column, pa.float64())  # rounded twice, as a number in a JSON document is
    elif pa.types.is_string(target) and pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or column.type == target):
        raise pa.ArrowInvalid(f"{column.type} is neither a number nor a string")
    return pc.cast(column, target)
