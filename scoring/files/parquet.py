"""Reads several parquet files as one table, and writes tables so that the same rows give the same bytes."""

import base64
import contextlib
import itertools
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
    """Return an empty table. `Schema.empty_table` does not support every type (pyarrow 25)."""
    return pa.Table.from_batches([], schema)


class ParquetFiles:
    """Reads parquet files of one schema as one table, in their order. A context manager that keeps the files open.

    Raises:
        FileNotFoundError, StorageError: a file can't be opened.
        pa.ArrowInvalid: a file is not parquet.
    """

    def __init__(self, files: Sequence[Location | Path]) -> None:
        """Open the files, at least one, and read their metadata."""
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
        """Return the number of row groups in all files."""
        return len(self._groups)

    def first(self, rows: int) -> pa.Table:
        """Return the first rows, at most `rows`."""
        for file in self._files:
            for batch in file.iter_batches(batch_size=rows):
                return pa.Table.from_batches([batch])
        return no_rows(self.schema)

    def nulls(self, column: str) -> int:
        """Return the number of nulls in a column, from the files' statistics if available."""
        # Statistics exist for leaves: a column of lists or structs has several, or none with its own name.
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
        """Return the non-null values of a column in some row groups, which are counted over all files."""
        chosen = [self._groups[each] for each in row_groups]
        chunks = [chunk for file, group in chosen for chunk in file.read_row_group(group, [column])[column].chunks]
        return pa.chunked_array(chunks, self.schema.field(column).type).combine_chunks().drop_null()

    def between(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows from `start` to before `stop`, counted over all files, at most one row group at a time."""
        end = 0
        for file, group in self._groups:
            begin, end = end, end + file.metadata.row_group(group).num_rows
            if begin < stop and start < end:
                table = file.read_row_group(group, columns, use_threads=False)
                yield table.slice(max(start - begin, 0), min(stop, end) - max(start, begin))


class RowsInTurn:
    """Splits a stream of tables into pieces of other sizes."""

    def __init__(self, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
        """Store the stream; `schema` is the schema of the tables."""
        self._tables = tables
        self._rest = no_rows(schema)

    def take(self, rows: int) -> pa.Table:
        """Return the next rows; fewer at the end of the stream."""
        taken, self._rest = self._rest.slice(0, rows), self._rest.slice(rows)
        pieces, missing = [taken], rows - taken.num_rows
        while missing and (following := next(self._tables, None)) is not None:
            taken, self._rest = following.slice(0, missing), following.slice(missing)
            pieces.append(taken)
            missing -= taken.num_rows
        return pa.concat_tables([piece for piece in pieces if piece.num_rows] or pieces[:1])


def write_tables(
    tables: Iterable[pa.Table],
    file: Path,
    schema_metadata: dict[bytes, bytes],
    closing_metadata: Callable[[], dict[str, str]] = dict,
    constants: Collection[str] = (),
) -> int:
    """Write tables of one schema, one after the other. Return the number of rows.

    A thread writes a row group while the next one is created: at most three of them are in memory.

    Args:
        tables: at least one, of any size. Every row group except the last has ROWS_PER_BATCH rows.
        file: the file to write.
        schema_metadata: metadata of the file's Arrow schema.
        closing_metadata: called after the last row, for additional metadata of the file.
        constants: columns created by `scoring.files.encodings.constant`. In the file they have their values' type.
    """
    pieces = _in_row_groups(iter(tables))
    first = next(pieces)
    schema = first.schema.with_metadata(schema_metadata)
    # The writer would store the tables' schema, in which constants are dictionaries; readers need their values' type.
    stored = pa.schema([_of_values(field) if field.name in constants else field for field in schema], schema_metadata)
    options = encodings(first, constants)
    rows = 0
    with (
        pq.ParquetWriter(file, schema, store_schema=False, write_page_checksum=True, **options) as writer,
        ThreadPoolExecutor(1, "parquet") as thread,
    ):
        written: Future[None] | None = None
        for piece in itertools.chain([first], pieces):
            if written is not None:
                written.result()
            written = thread.submit(writer.write_table, piece.replace_schema_metadata(schema_metadata))
            rows += piece.num_rows
        if written is not None:
            written.result()
        arrow_schema = {"ARROW:schema": base64.b64encode(stored.serialize())}
        writer.add_key_value_metadata(arrow_schema | schema_metadata | closing_metadata())
    return rows


def _of_values(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type)


def _in_row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows, ROWS_PER_BATCH at a time; one empty table if there are none."""
    first = next(tables)
    rows = RowsInTurn(itertools.chain([first], tables), first.schema)
    piece = rows.take(ROWS_PER_BATCH)
    while True:
        yield piece.combine_chunks()  # because the writer may end a page where a chunk of a column ends
        piece = rows.take(ROWS_PER_BATCH)
        if not piece.num_rows:
            return
