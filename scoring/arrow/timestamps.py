"""ISO 8601 strings, dates and timestamps as timestamp[us, UTC], within the range that every store holds."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import plain_strings

MOMENT = pa.timestamp("us", "UTC")


ISO_DATE = r"^\s*\d{4}-\d{2}-\d{2}"


DATE_ALONE = ISO_DATE + r"\s*$"


ZONED = ISO_DATE + r".*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"


# What pandas' nanoseconds hold; offline stores get their entity rows in them.
EARLIEST, LATEST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)


def to_moment(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO 8601 texts, dates or timestamps as MOMENT, cut to whole microseconds; UTC where there is no zone.

    Raises:
        ArrowInvalid, ArrowNotImplementedError, ValueError, OverflowError: a value is none, or out of range.
    """
    column = plain_strings(column)
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
