"""The rows of a replay's report."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from scoring.arrow.timestamps import TIMESTAMP

REPORT_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("log_timestamp", TIMESTAMP),
        ("entity", pa.string()),
        ("model", pa.string()),
        ("role", pa.string()),
        ("logged", pa.string()),
        ("replayed", pa.string()),
        ("cause", pa.string()),
        ("detail", pa.string()),
    ]
)
"""The columns of the report: one row per row with another answer."""


def report_rows(columns: dict[str, Any], causes: Sequence[str], details: Sequence[str]) -> pa.Table:
    """Return the report's rows; `columns` has all other columns, and strings that are the same in all rows."""
    rows = len(causes)
    columns = columns | {"cause": pa.array(causes, pa.string()), "detail": pa.array(details, pa.string())}
    arrays = []
    for field in REPORT_SCHEMA:
        column = columns[field.name]
        arrays.append(pa.repeat(pa.scalar(column), rows) if isinstance(column, str) else column.cast(field.type))
    return pa.table(arrays, schema=REPORT_SCHEMA)


def as_text(rows: pa.Table, names: Sequence[str], prefix: str = "") -> pa.Array:
    """Return the values of some columns as one string per row: the value of one, or `name=value` of several."""
    columns = [rows[prefix + name].to_pylist() for name in names]
    if len(names) == 1:
        return pa.array([None if value is None else str(value) for value in columns[0]], pa.string())
    values = (zip(names, row, strict=True) for row in zip(*columns, strict=True))
    return pa.array([", ".join(f"{name}={value}" for name, value in row) for row in values], pa.string())
