"""What a cell of a batch request means: as the type that is needed, or refused with its column and row."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow_text import text_of
from scoring.errors import BatchRequestError

MOMENT = pa.timestamp("us", "UTC")
WHOLE_NUMBER = r"^\s*[+-]?\d+\s*$"
ISO_DATE = r"^\s*\d{4}-\d{2}-\d{2}"
DATE_ALONE = ISO_DATE + r"\s*$"
ZONED = ISO_DATE + r".*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
# What pandas' nanoseconds hold; offline stores get their entity rows in them.
EARLIEST, LATEST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)


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
    column = _plain(column)
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


def to_moment(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO 8601 texts, dates or timestamps as MOMENT, cut to whole microseconds; UTC where there is no zone.

    Raises:
        ArrowInvalid, ArrowNotImplementedError, ValueError, OverflowError: a value is none, or out of range.
    """
    column = _plain(column)
    if pa.types.is_null(column.type):
        return pc.cast(column, MOMENT)
    if pa.types.is_timestamp(column.type):
        zoned = column if column.type.tz else pc.assume_timezone(column, "UTC")
        return _in_range(_whole_microseconds(zoned))
    if pa.types.is_date(column.type):
        return _in_range(pc.assume_timezone(pc.cast(column, pa.timestamp("us")), "UTC"))
    if not pa.types.is_string(column.type):
        raise pa.ArrowInvalid(f"{column.type} is no timestamp")
    if not pc.all(
        pc.match_substring_regex(column, ISO_DATE), min_count=0
    ).as_py():  # pandas also takes "now", and years alone
        raise pa.ArrowInvalid("not an ISO 8601 date")
    import pandas as pd

    moments = pd.to_datetime(_with_zone(column).to_pandas(), format="ISO8601", utc=True)
    return _in_range(_whole_microseconds(pa.chunked_array([pa.Array.from_pandas(moments)])))


def _whole_microseconds(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    # A cast cuts towards 1970, and a moment that is later than it was could see a feature of its future.
    if moments.type.unit == "ns" and (pc.min(pc.cast(moments, pa.int64())).as_py() or 0) < 0:
        moments = pc.floor_temporal(moments, unit="microsecond")
    return pc.cast(moments, MOMENT, safe=moments.type.unit != "ns")


def _with_zone(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO 8601 texts, with `Z` where they name no zone: pandas 2.3 gives such a one the zone of a row before it."""
    text = pc.utf8_trim_whitespace(moments)
    of_utc = pc.binary_join_element_wise(text, "Z", "")
    midnight = pc.binary_join_element_wise(text, "T00:00:00Z", "")
    zoned = pc.if_else(pc.match_substring_regex(text, ZONED), text, of_utc)
    return pc.if_else(pc.match_substring_regex(text, DATE_ALONE), midnight, zoned)


def _in_range(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    # As numbers: Arrow's moments go beyond Python's.
    bounds = pc.min_max(pc.cast(moments, pa.int64())).as_py()
    first, last = (int(moment.timestamp()) * 1_000_000 for moment in (EARLIEST, LATEST))
    if bounds["min"] is not None and not (first <= bounds["min"] and bounds["max"] < last):
        raise pa.ArrowInvalid("out of range")
    return moments


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kinds = (pa.types.is_dictionary, pa.types.is_large_string, pa.types.is_string_view)
    if not any(kind(column.type) for kind in kinds):
        return column
    return pc.cast(column, column.type.value_type if pa.types.is_dictionary(column.type) else pa.string())
