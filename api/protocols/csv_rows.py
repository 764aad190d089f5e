"""Reads requests in CSV (RFC 4180): a header line, then one line per entity."""

import csv
import io
from collections.abc import Callable
from typing import Any

import msgspec

from api.errors import MalformedBody
from api.model.request_schema import EntityRequest, RequestSchema
from api.model.request_types import convert_list


def decode_csv(schema: RequestSchema, request_id: str, body: bytes, max_rows: int, more: str = "more") -> EntityRequest:
    """Decode a request in CSV. See `read_csv`.

    Raises:
        MalformedBody: the body is not CSV in UTF-8.
        InvalidRequest: the columns, the number of cells in a line, or a value does not fit. The message names the line.
    """
    columns, place = read_csv(schema, body, max_rows, more)
    return schema.from_columns(request_id, columns, max_rows, place)


def read_csv(
    schema: RequestSchema, body: bytes, max_rows: int, more: str = "more"
) -> tuple[dict[str, list[Any]], Callable[[int], str]]:
    """Read the columns, which may have any order. An empty cell is null. Empty lines at the end are ignored.

    The cells of a column of strings or timestamps are strings. Other cells are written as in JSON; booleans may have
    capitals, as Python writes them. Columns without a name are ignored: pandas writes its index that way. `more`
    describes a number of rows above `max_rows` in the error.

    Returns the columns and the description of a row, for `RequestSchema.from_columns`.

    Raises:
        MalformedBody: the body is not CSV in UTF-8.
        InvalidRequest: the names of the columns or the number of cells in a line do not fit.
    """
    try:
        text = body.rstrip(b"\r\n").decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"byte {error.start} is not UTF-8", "CSV") from None
    rows, lines = [], []
    try:
        names = next(reader, [])
        schema.check_columns([name for name in names if name])
        line = reader.line_num + 1
        for row in reader:
            rows.append(row)
            lines.append(line)
            if row:
                schema.check_rows(len(rows), max_rows, more)
            line = reader.line_num + 1
    except csv.Error as error:
        raise MalformedBody(f"line {reader.line_num}: {error}", "CSV") from None
    for row, line in zip(rows, lines, strict=False):
        if len(row) != len(names):
            raise schema.invalid_columns(f"Line {line} has {len(row)} cells, and the header has {len(names)}")
    columns = {
        name: _values(cells, takes_strings=_takes_strings(schema, name))
        for name, cells in zip(names, zip(*rows, strict=True) if rows else [[] for _ in names], strict=True)
        if name
    }
    return columns, lambda row: f"line {lines[row]}"


def _takes_strings(schema: RequestSchema, name: str) -> bool:
    try:
        convert_list(["a"], schema.column_types[name])
    except msgspec.ValidationError:
        return False
    return True


def _values(cells: Any, *, takes_strings: bool) -> list[Any]:
    return [None if not cell else cell if takes_strings else _scalar(cell) for cell in cells]


def _scalar(cell: str) -> Any:
    """Return the number or boolean of a cell, or the cell itself, which no column but one of strings accepts."""
    try:
        value = msgspec.json.decode(cell.lower() if cell in {"True", "False"} else cell)
    except (msgspec.DecodeError, RecursionError):
        return cell
    return value if isinstance(value, int | float) else cell
