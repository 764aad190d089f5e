"""Converts a column of a batch request to the required type, or refuses its first value that does not fit."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import plain_strings, to_string
from scoring.arrow.timestamps import TIMESTAMP, to_timestamps
from scoring.errors import BatchRequestError

INTEGER = r"^\s*-?\d+\s*$"
VALUE_CHARACTERS = 40
# Pattern of a malformed integer in a text file → the probable cause and the remedy.
INTEGER_HINTS = {
    r"[+-]?\d+([.,]\d*)?[eE][+-]?\d+": "A spreadsheet probably shortened it: give the column the format of a number "
    "without decimals, or of text, and save the file again.",
    r"[+-]?\d+[.,]0*": "The column was probably saved as numbers with decimals, as pandas does if one is missing: "
    'convert it to integers, in pandas with astype("Int64").',
    r"\+\d+": "Remove the plus sign, which a spreadsheet's number format may have added.",
    r"[+-]?\d{1,3}([,.' ]\d{3})+": "A spreadsheet probably separated its thousands: give the column the format of a "
    "number without separators, and save the file again.",
}
# Errors for a value that can't be converted.
MISFITS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError)


def convert_column(
    place: str, name: str, column: pa.ChunkedArray, first_row: int, target: pa.DataType
) -> pa.ChunkedArray:
    """Convert a column of the request at `place`, whose rows are numbered from `first_row` + 1. Nulls stay nulls.

    Raises:
        BatchRequestError: names the first row whose value does not fit.
    """
    if len(column) == 0:  # its type does not matter
        return pa.chunked_array([], target)
    try:
        return _converted(column, target)
    except MISFITS:
        row = _first_misfit(column, target)
    text = to_string(column[row])
    value = text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"
    detail = _hint(text, target) if pa.types.is_string(column.type) else ""
    kind = "" if pa.types.is_string(column.type) else f" ({column.type})"
    wanted = "an ISO 8601 date and time between 1678 and 2261" if pa.types.is_timestamp(target) else str(target)
    problem = f"{value!r}{kind} is not {wanted}.{detail}"
    raise BatchRequestError(place, problem, column=name, row=first_row + row + 1) from None


def _hint(text: str, target: pa.DataType) -> str:
    """Return a sentence about the probable cause of a string that is not an integer; empty if unknown."""
    hints = INTEGER_HINTS.items() if pa.types.is_integer(target) else ()
    return next((f" {hint}" for pattern, hint in hints if re.fullmatch(pattern, text.strip())), "")


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
    """Convert strings, numbers or timestamps to `target`, or raise one of MISFITS."""
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
            column = pc.cast(column, pa.float64())  # rounded twice, like a number in a JSON document
    elif pa.types.is_decimal(column.type):
        if pa.types.is_string(target) and column.type.scale != 0:
            raise pa.ArrowInvalid("an identifier can't have decimals")
        if pa.types.is_decimal32(column.type):
            column = pc.cast(column, pa.decimal64(18, column.type.scale))  # pyarrow 25 converts it to int32 only
    elif pa.types.is_string(target) and pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or column.type == target):
        raise pa.ArrowInvalid(f"{column.type} is neither a number nor a string")
    return pc.cast(column, target)
