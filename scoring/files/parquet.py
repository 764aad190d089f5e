"""Tables in parquet: written as the same bytes in whatever pieces they come, and several files read as one table."""

import base64
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.files.encodings import encodings
from scoring.files.location import Location

ROWS_PER_BATCH = 65_536


def no_rows(schema: pa.Schema) -> pa.Table:
    """An empty table. pyarrow's own makes an array of each type, which it can't of every type (pyarrow 25)."""
    return pa.Table.from_batches([], schema)


class ParquetFiles:
    """Parquet files of one schema, read as one table, in their order. Use it as a context: it keeps them open.

    Raises:
        FileNotFoundError, StorageError: one can't be opened.
        pa.ArrowInvalid: one is not parquet.
    """

    def __init__(self, files: Sequence[Location | Path]) -> None:
        """Open at least one file and read what they say of themselves."""
        with contextlib.ExitStack() as opened:
            places = [file if isinstance(file, Location) else Location(file) for file in files]
            sources = [opened.enter_context(place.open()) for place in places]
            self._files = [opened.enter_context(pq.ParquetFile(source, pre_buffer=False)) for source in sources]
            self._opened = opened.pop_all()
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        self.schema: pa.Schema = self._files[0].schema_arrow
        self.rows: int = sum(file.metadata.num_rows for file in self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def row_groups(self) -> int:
        """How many row groups they have together."""
        return len(self._groups)

    def first(self, rows: int) -> pa.Table:
        """The first rows, at most so many."""
        for file in self._files:
            for batch in file.iter_batches(batch_size=rows):
                return pa.Table.from_batches([batch])
        return no_rows(self.schema)

    def nulls(self, column: str) -> int:
        """How many values of a column are null, from the files' statistics where they have them."""
        # Statistics are kept for leaves: a column of lists or structs has several or none of its own.
        leaves = self._files[0].schema
        place = next(i for i in range(len(leaves)) if leaves.column(i).path == column)
        nulls = 0
        for file, group in self._groups:
            statistics = file.metadata.row_group(group).column(place).statistics
            if statistics is not None and statistics.has_null_count:
                nulls += statistics.null_count
            else:
                nulls += file.read_row_group(group, [column])[column].null_count
        return nulls

    def values(self, column: str, row_groups: Iterable[int]) -> pa.Array:
        """The non-null values of a column in some row groups, counted over all files."""
        chosen = [self._groups[each] for each in row_groups]
        chunks = [chunk for file, group in chosen for chunk in file.read_row_group(group, [column])[column].chunks]
        return pa.chunked_array(chunks, self.schema.field(column).type).combine_chunks().drop_null()

    def between(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows from `start` up to but not `stop`, counted over all files, at most a row group at a time."""
        end = 0
        for file, group in self._groups:
            begin, end = end, end + file.metadata.row_group(group).num_rows
            if begin < stop and start < end:
                table = file.read_row_group(group, columns, use_threads=False)
                yield table.slice(max(start - begin, 0), min(stop, end) - max(start, begin))


class RowsInTurn:
    """A stream of tables, from which one takes rows in other numbers than they come in."""

    def __init__(self, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        """Take nothing yet; `schema` is that of the tables."""
        self._tables = tables
        self._rest = no_rows(schema)

    def take(self, rows: int) -> pa.Table:
        """The next rows; fewer where the stream ends."""
        pieces = []
        while rows > self._rest.num_rows:
            pieces.append(self._rest)
            rows -= self._rest.num_rows
            following = next(self._tables, None)
            self._rest = self._rest.slice(0, 0) if following is None else following
            if following is None:
                return pa.concat_tables(pieces)
        taken, self._rest = self._rest.slice(0, rows), self._rest.slice(rows)
        return pa.concat_tables([*pieces, taken])


def write_tables(
    tables: Iterable[pa.Table],
    file: Path,
    schema_metadata: dict[bytes, bytes],
    closing_metadata: Callable[[], dict[str, str]] = dict,
    constants: Collection[str] = (),
) -> int:
    """Write tables of one schema below each other; returns their rows.

    A row group is written while the next one is made: three of them are in memory at most.

    Args:
        tables: at least one, in any pieces; each row group of the file has ROWS_PER_BATCH rows but the last one.
        file: where to write.
        schema_metadata: what the file says of itself from the start, in its Arrow schema.
        closing_metadata: what it says of itself once all rows are written, in its footer; asked for then.
        constants: columns that `scoring.files.encodings.constant` made. In the file they are of their values' type.
    """
    rows = 0
    pieces = _rows_at_a_time(tables, ROWS_PER_BATCH)
    first = next(pieces)
    schema = first.schema.with_metadata(schema_metadata)
    told = pa.schema([_of_values(field) if field.name in constants else field for field in schema], schema_metadata)
    with (
        # Arrow's schema is added below, because it is another one than that of the tables where there are constants.
        pq.ParquetWriter(
            file, schema, store_schema=False, write_page_checksum=True, **encodings(first, constants)
        ) as writer,
        ThreadPoolExecutor(1, "parquet") as thread,
    ):
        written: Future[None] | None = None
        piece: pa.Table | None = first
        while piece is not None:
            if written is not None:
                written.result()
            written = thread.submit(writer.write_table, piece.replace_schema_metadata(schema_metadata))
            rows += piece.num_rows
            piece = next(pieces, None)
        if written is not None:
            written.result()
        said: dict[str | bytes, str | bytes] = {"ARROW:schema": base64.b64encode(told.serialize())}
        writer.add_key_value_metadata(said | schema_metadata | closing_metadata())
    return rows


def _of_values(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type)


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
