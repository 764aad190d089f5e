"""What a cell of a batch request means: as the type that is needed, or refused with its column and row."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import plain_strings, text_of
from scoring.arrow.timestamps import MOMENT, to_moment
from scoring.errors import BatchRequestError

WHOLE_NUMBER = r"^\s*[+-]?\d+\s*$"


def converted(
    shown: str, name: str, column: pa.ChunkedArray, start: int, convert: Callable[[Any], Any], problem: str
) -> pa.ChunkedArray:
    """What `convert` makes of a column of the file `shown`, whose rows are number `start` + 1 and following.

    Raises:
        BatchRequestError: names the first row whose value `convert` refuses, and says that it "<problem>".
    """
    try:
        return convert(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError):
        row = _first_bad(column, convert)
    value = text_of(column[row])
    text = value if len(value) <= 40 else value[:39] + "…"
    raise BatchRequestError(shown, f"{text!r} {problem}.", column=name, row=start + row + 1) from None


def _first_bad(column: pa.ChunkedArray, convert: Callable[[Any], Any]) -> int:
    start, length = 0, len(column)
    while length > 1:
        half = length // 2
        try:
            convert(column.slice(start, half))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError):
            length = half
        else:
            start, length = start + half, length - half
    return start


def to_value(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Texts, numbers or moments as `target`; a null stays one.

    Raises:
        ArrowInvalid, ArrowNotImplementedError: a value does not fit.
    """
    column = plain_strings(column)
    if pa.types.is_null(column.type):
        return pc.cast(column, target)  # where a value is needed, the caller says that there is none
    if pa.types.is_timestamp(target):
        moments = to_moment(column)
        return moments if target == MOMENT else pc.cast(pc.cast(moments, pa.timestamp("us")), target)
    if pa.types.is_string(column.type):
        if (
            pa.types.is_integer(target)
            and not pc.all(pc.match_substring_regex(column, WHOLE_NUMBER), min_count=0).as_py()
        ):
            raise pa.ArrowInvalid("not a whole number")
        if pa.types.is_string(target):
            return pc.cast(pc.cast(column, pa.binary()), target)  # which looks at each: a file may hold any bytes
        if target == pa.float32():
            column = pc.cast(column, pa.float64())  # rounded twice, as a number in a JSON text is
    elif pa.types.is_string(target) and pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or column.type == target):
        raise pa.ArrowInvalid(f"{column.type} is neither a number nor a text")
    return pc.cast(column, target)
