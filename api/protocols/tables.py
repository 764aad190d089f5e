"""Reads requests as tables: Arrow streams and Parquet files."""

import math
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from api.errors import BodyTooLarge, MalformedBody
from api.model.request_schema import EntityRequest, RequestSchema
from api.protocols.table_limits import Unreadable, check_pages, check_stream, read_footer
from scoring.arrow.text import STRINGS, plain_strings
from scoring.arrow.timestamps import to_timestamps
from scoring.errors import ServingError

ARROW, PARQUET = b"application/vnd.apache.arrow.stream", b"application/vnd.apache.parquet"
TABLE_NAMES = {ARROW: "Arrow IPC", PARQUET: "Parquet"}
"""Media types of the requests that `decode_table` reads, and their names in errors."""
# No request input is longer, in UTF-8.
MAX_STRING_BYTES = 4 * 4096
PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""Name of a column in which pandas writes the index of a filtered or sorted frame."""
PLAIN: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    *STRINGS,
    pa.types.is_timestamp,
    pa.types.is_date,
)


def decode_table(media: bytes, schema: RequestSchema, body: bytes, max_rows: int, max_bytes: int) -> pa.Table:
    """Decode a request's table. Its values are checked by `block_of`. Blocking: for a worker thread.

    Args:
        media: one of TABLE_NAMES.
        schema: the request schema.
        body: the encoded table.
        max_rows: maximum number of rows.
        max_bytes: maximum size of the decompressed table.

    Raises:
        MalformedBody: the body is not such a table, or not one that can be decoded in bounded memory.
        BodyTooLarge: the decompressed table is too large.
        InvalidRequest: a column is missing, unknown or has another type than a scalar, or the number of rows is wrong.
    """
    try:
        table = (_read_stream if media == ARROW else _read_parquet)(schema, body, max_rows, max_bytes)
        table = table.select(_columns(table.schema))
        table.validate(full=True)  # otherwise a malformed table can crash the process
        _check_shared_strings(schema, table)
    except ServingError:
        raise
    except Unreadable as error:
        raise MalformedBody(str(error), TABLE_NAMES[media]) from None
    except Exception:  # pyarrow raises many types for malformed bodies, and its messages quote them
        raise MalformedBody("it can't be decoded", TABLE_NAMES[media]) from None
    return table


def _read_stream(schema: RequestSchema, body: bytes, max_rows: int, max_bytes: int) -> pa.Table:
    check_stream(body)
    batches, rows, size = [], 0, 0
    with pa.ipc.open_stream(pa.BufferReader(body)) as stream:
        _check_fields(schema, stream.schema)
        for batch in stream:
            batches.append(batch)
            rows += batch.num_rows
            size += batch.get_total_buffer_size()
            if rows > max_rows:
                break
            if size > max_bytes:
                raise BodyTooLarge(max_bytes, "with the dictionaries of each batch")
        schema.check_rows(rows, max_rows, f"more than {max_rows}")
        return pa.Table.from_batches(batches, stream.schema)


def _read_parquet(schema: RequestSchema, body: bytes, max_rows: int, max_bytes: int) -> pa.Table:
    footer = read_footer(body)
    _check_fields(schema, footer.schema.to_arrow_schema())
    schema.check_rows(footer.rows, max_rows, f"more than {max_rows}")
    check_pages(body, footer, max_bytes)
    # As dictionaries, strings take no more memory than their pages, even if each row has the same long one.
    columns = [footer.schema.column(place) for place in range(len(footer.schema))]
    strings = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(
        pa.BufferReader(body), read_dictionary=strings, pre_buffer=False, coerce_int96_timestamp_unit="us"
    ) as file:
        return file.read(use_threads=False)


def _check_fields(schema: RequestSchema, fields: pa.Schema) -> None:
    names = _columns(fields)
    schema.check_columns(names)
    for field in map(fields.field, names):
        kind = field.type
        allowed = any(plain(kind) for plain in PLAIN) or (pa.types.is_decimal(kind) and kind.scale == 0)
        if pa.types.is_dictionary(kind):
            allowed = any(holds(kind.value_type) for holds in (pa.types.is_string, *STRINGS))
        if not allowed or b"ARROW:extension:name" in (field.metadata or {}):
            raise schema.invalid_columns(f"Column {field.name!r} has the unsupported type {str(field.type)[:50]}")


def _columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns, without the index of a pandas frame."""
    return [name for name in schema.names if not PANDAS_INDEX.fullmatch(name)]


def _check_shared_strings(schema: RequestSchema, table: pa.Table) -> None:
    """Check the strings that any number of rows may share, and that would take memory for each row."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks:
            strings = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
            if (strings is not chunk or _is_view(chunk)) and _longest(strings) > MAX_STRING_BYTES:
                raise schema.invalid_columns(f"Column {name!r} has a string of more than {MAX_STRING_BYTES} bytes")


def _is_view(strings: pa.Array) -> bool:
    return bool(pa.types.is_string_view(strings.type) or pa.types.is_binary_view(strings.type))


def _longest(strings: pa.Array) -> int:
    if not _is_view(strings):
        return pc.max(pc.binary_length(strings)).as_py() or 0
    end = strings.offset + len(strings)  # a view has 16 bytes and begins with its length; Arrow has no kernel for it
    return max(memoryview(strings.buffers()[1]).cast("i")[4 * strings.offset : 4 * end : 4], default=0) if end else 0


def block_of(schema: RequestSchema, request_id: str, table: pa.Table, start: int, rows: int) -> EntityRequest:
    """Return the request for some rows of a table, which are counted from 0 in errors.

    Raises:
        InvalidRequest: a value does not fit its column.
    """
    columns = {
        name: _values(schema, name, column.slice(start, rows))
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return schema.from_columns(request_id, columns, rows, lambda row: f"row {start + row}")


def _values(schema: RequestSchema, name: str, column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    try:
        if pa.types.is_decimal(kind):
            column = pc.cast(pc.cast(column, pa.decimal128(38, 0)), pa.int64())
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            column = to_timestamps(column)
        else:
            column = plain_strings(column)
    except (pa.ArrowException, ValueError, OverflowError):
        needed = "64-bit integers" if pa.types.is_decimal(kind) else "dates and times between 1678 and 2261"
        raise schema.invalid_columns(f"Column {name!r}: {needed} are needed") from None
    values: list[Any] = column.to_pylist()
    if pa.types.is_floating(kind):
        return [None if value is None or math.isnan(value) else value for value in values]
    return values
