"""Converts ISO 8601 strings, dates and timestamps to timestamp[us, UTC], within the range that every store supports."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.text import plain_strings

TIMESTAMP = pa.timestamp("us", "UTC")

ISO_DATE = r"^\s*\d{4}-\d{2}-\d{2}"
DATE_ALONE = ISO_DATE + r"\s*$"
ZONED = ISO_DATE + r".*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"

# Range of pandas' nanosecond timestamps, which offline stores use for entity rows.
EARLIEST, LATEST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)


def to_timestamps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert ISO 8601 strings, dates or timestamps to TIMESTAMP, rounded down to microseconds; UTC if without a zone.

    Raises:
        ArrowInvalid, ArrowNotImplementedError, ValueError, OverflowError: a value is not a timestamp, or out of range.
    """
    column = plain_strings(column)
    if pa.types.is_null(column.type):
        return pc.cast(column, TIMESTAMP)
    if pa.types.is_timestamp(column.type):
        zoned = column if column.type.tz else pc.assume_timezone(column, "UTC")
        return _in_range(_to_microseconds(zoned))
    if pa.types.is_date(column.type):
        return _in_range(pc.assume_timezone(pc.cast(column, pa.timestamp("us")), "UTC"))
    if not pa.types.is_string(column.type):
        raise pa.ArrowInvalid(f"{column.type} is not a timestamp")
    # Check the format, because pandas also accepts "now" and years alone.
    if not pc.all(pc.match_substring_regex(column, ISO_DATE), min_count=0).as_py():
        raise pa.ArrowInvalid("not an ISO 8601 date")
    import pandas as pd

    parsed = pd.to_datetime(_with_zone(column).to_pandas(), format="ISO8601", utc=True)
    return _in_range(_to_microseconds(pa.chunked_array([pa.Array.from_pandas(parsed)])))


def _to_microseconds(timestamps: pa.ChunkedArray) -> pa.ChunkedArray:
    # A cast rounds toward 1970, and rounding up could leak a future feature.
    if timestamps.type.unit == "ns" and (pc.min(pc.cast(timestamps, pa.int64())).as_py() or 0) < 0:
        timestamps = pc.floor_temporal(timestamps, unit="microsecond")
    return pc.cast(timestamps, TIMESTAMP, safe=timestamps.type.unit != "ns")


def _with_zone(strings: pa.ChunkedArray) -> pa.ChunkedArray:
    """Append `Z` to ISO 8601 strings without a zone, to which pandas 2.3 would apply the zone of an earlier row."""
    strings = pc.utf8_trim_whitespace(strings)
    as_utc = pc.binary_join_element_wise(strings, "Z", "")
    midnight = pc.binary_join_element_wise(strings, "T00:00:00Z", "")
    zoned = pc.if_else(pc.match_substring_regex(strings, ZONED), strings, as_utc)
    return pc.if_else(pc.match_substring_regex(strings, DATE_ALONE), midnight, zoned)


def _in_range(timestamps: pa.ChunkedArray) -> pa.ChunkedArray:
    # Compare as integers, because Arrow's range exceeds Python's.
    bounds = pc.min_max(pc.cast(timestamps, pa.int64())).as_py()
    first, last = (int(bound.timestamp()) * 1_000_000 for bound in (EARLIEST, LATEST))
    if bounds["min"] is not None and not (first <= bounds["min"] and bounds["max"] < last):
        raise pa.ArrowInvalid("out of range")
    return timestamps
