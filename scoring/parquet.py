"""Tables written as parquet: the same rows give the same bytes, in whatever pieces they come."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.batch_request import ROWS_A_BATCH


def write_tables(
    tables: Iterable[pa.Table],
    file: Path,
    schema_metadata: dict[bytes, bytes],
    closing_metadata: Callable[[], dict[str, str]] = dict,
) -> int:
    """Write tables of one schema below each other; returns their rows.

    Args:
        tables: at least one, in any pieces; each row group of the file has ROWS_A_BATCH rows but the last one.
        file: where to write.
        schema_metadata: what the file says of itself from the start, in its Arrow schema.
        closing_metadata: what it says of itself once all rows are written, in its footer; asked for then.
    """
    rows = 0
    pieces = _rows_at_a_time(tables, ROWS_A_BATCH)
    first = next(pieces)
    schema = first.schema.with_metadata(schema_metadata)
    # Dictionary encoding of floats is most of the time of writing them, and saves nothing where values hardly repeat.
    with pq.ParquetWriter(file, schema, use_dictionary=_repeating(schema), write_page_checksum=True) as writer:
        while first is not None:
            writer.write_table(first.replace_schema_metadata(schema_metadata))
            rows += first.num_rows
            first = next(pieces, None)
        writer.add_key_value_metadata(closing_metadata())
    return rows


def _rows_at_a_time(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, `rows` at a time; one empty table if there are none."""
    waiting: list[pa.Table] = []
    count = 0
    given = False
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        while count >= rows:
            # In one piece, because the writer may end a page where a piece of a column ends.
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows).combine_chunks()
            given = True
            waiting, count = [joined.slice(rows)], count - rows
    if count or not given:
        yield pa.concat_tables(waiting).combine_chunks()


def _repeating(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_boolean(field.type)]
