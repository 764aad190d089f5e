"""Converts a column of a batch request to the required type, or refuses its first value that does not fit."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import plain_strings, to_string
from scoring.arrow.timestamps import TIMESTAMP, to_timestamps
from scoring.errors import BatchRequestError

INTEGER = r"^-?\d+$"
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
# The same for other numbers, and for values of any type.
NUMBER_HINTS = {
    r"[+-]?\d+,\d+": "Decimals need a point instead of a comma.",
    r"[+-]?\d{1,3}([,' ]\d{3})+\.\d+|[+-]?\d{1,3}([.' ]\d{3})+,\d+": "Write it with a point before the decimals, and "
    "without separators of thousands.",
}
HINTS = {r"(?i)null|none|nan|nat|n/?a|#n/a|<na>|\\n": "Leave the cell empty if there is no value."}
TYPE_NAMES = {
    pa.int32(): "a 32-bit integer",
    pa.int64(): "a 64-bit integer",
    pa.float32(): "a finite number that a float can represent",
    pa.float64(): "a finite number that a double can represent",
    pa.bool_(): "a boolean (true or false)",
    pa.string(): "a string",
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
    wanted = TYPE_NAMES.get(target, "an ISO 8601 date and time between 1678 and 2261")
    problem = f"{value!r}{kind} is not {wanted}.{detail}"
    raise BatchRequestError(place, problem, column=name, row=first_row + row + 1) from None


def _hint(text: str, target: pa.DataType) -> str:
    """Return a sentence about the probable cause of a string that does not fit; empty if unknown."""
    number = INTEGER_HINTS if pa.types.is_integer(target) else NUMBER_HINTS if pa.types.is_floating(target) else {}
    hints = (number | HINTS).items()
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
    if pa.types.is_string(target) and pa.types.is_string(column.type):
        return pc.cast(pc.cast(column, pa.binary()), target)  # validates UTF-8: a file may hold any bytes
    if pa.types.is_decimal(column.type):
        column = _from_decimals(column, target)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        column = _from_numbers(column, target)
    elif not (pa.types.is_string(column.type) or column.type == target):
        raise pa.ArrowInvalid(f"{column.type} is neither a number nor a string")
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        if pa.types.is_integer(target) and not pc.all(pc.match_substring_regex(column, INTEGER), min_count=0).as_py():
            raise pa.ArrowInvalid("not an integer")
        if target == pa.float32():
            column = pc.cast(column, pa.float64())  # rounded twice, like a number in a JSON document
    converted = pc.cast(column, target)
    if pa.types.is_floating(target) and pc.any(pc.is_inf(converted)).as_py():
        raise pa.ArrowInvalid("infinite")
    return converted


def _from_decimals(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Return decimals in a type that pyarrow converts to `target` exactly, or to the nearest number."""
    if pa.types.is_string(target) and column.type.scale != 0:
        raise pa.ArrowInvalid("an identifier can't have decimals")
    if pa.types.is_decimal32(column.type):
        column = pc.cast(column, pa.decimal64(18, column.type.scale))  # pyarrow 25 converts it to int32 only
    return pc.cast(column, pa.string()) if pa.types.is_floating(target) else column


def _from_numbers(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Return integers or floats in a type that pyarrow converts to `target` exactly. NaN becomes null."""
    if pa.types.is_floating(column.type) and not pa.types.is_floating(target):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        column = pc.cast(column, pa.int64())
    if pa.types.is_boolean(target):
        booleans = pc.is_in(column.drop_null(), pa.array([0, 1], column.type))
        if not pc.all(booleans, min_count=0).as_py():
            raise pa.ArrowInvalid("neither 0 nor 1")
    return column
