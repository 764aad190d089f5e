"""Reads a batch request, a file of entity rows with event timestamps."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from scoring.arrow.signature import EVENT_TIMESTAMP, OUTPUT_COLUMNS
from scoring.arrow.timestamps import TIMESTAMP
from scoring.batch.manifest import unreadable
from scoring.batch.request_values import convert_column
from scoring.batch.text_request import (
    SEPARATORS,
    check_encoding,
    check_quotes,
    find_uneven_row,
    line_that_is_not_utf8,
    separator_hint,
)
from scoring.errors import BatchRequestError, StillWritten, StorageError, listed
from scoring.feast_plugins.join_keys import ROW
from scoring.features.model_features import ModelFeatures, feast_name
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ROWS_PER_BATCH, no_rows
from scoring.files.transfer import Content, fetch
from scoring.foreign_errors import first_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
MAX_LISTED = 20
# pyarrow's error for a row that has more or fewer cells than the header. It does not always name the row; if it does,
# its count includes the header (pyarrow 25).
UNEVEN = re.compile(r"CSV parse error: (Row #\d+: )?Expected \d+ columns")
READ_BYTES = 1 << 16
# Units of INT96 timestamps, the finest first → the range of a 64-bit integer, in seconds from 1970.
INT96_UNITS = {"ns": (1 << 63) // 10**9, "us": (1 << 63) // 10**6, "ms": (1 << 63) // 10**3}


class RequestCopy(msgspec.Struct, frozen=True):
    """A local snapshot of a batch request's file."""

    file: Path
    place: str
    """Location of the request itself, for error messages."""
    content: Content


@contextlib.contextmanager
def copied_request(source: Location) -> Iterator[RequestCopy]:
    """Provide a local snapshot of a request, in a folder that is removed when the block ends.

    Raises:
        BatchRequestError: there is no such file, or it kept changing.
        StorageError: it can't be read or copied.
    """
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(scratch_folder()) / f"request{Path(source.name).suffix.lower()}"
            content = fetch(source, copy)
        except (FileNotFoundError, StillWritten) as error:
            raise unreadable(source, error) from None
        except OSError as error:
            raise StorageError("copying", str(source), error) from error
        yield RequestCopy(copy, str(source), content)


def read_batch_request(file: Path, features: ModelFeatures, origin: str | None = None) -> Iterator[pa.Table]:
    """Yield the request's rows in the file's order, with all columns, in one or more tables of about ROWS_PER_BATCH.

    Join keys get the type that Feast declares, request-time inputs the model's type, and `event_timestamp` becomes
    timestamp[us, UTC] (a timestamp without a zone is UTC). Other columns keep their type; those of a CSV file are
    strings.

    Args:
        file: `.csv` or `.tsv` with a header, or `.parquet`.
        features: the join keys and request-time inputs that the model needs.
        origin: the file that `file` was copied from, for error messages.

    Raises:
        BatchRequestError: the file can't be read, a column is missing or clashes with one that scoring adds, or a value
            does not fit. The message names the file, the column and the first bad row. May be raised after valid rows,
            so publish only after the last row.
    """
    place = origin or str(file)
    needed = entity_columns(features)
    rows = 0
    for table in _read(file, place):
        if rows == 0:
            _check_columns(place, table.column_names, features, DELIMITERS.get(file.suffix))
        for name, dtype in needed.items():
            column = table[name] if dtype is None else convert_column(place, name, table[name], rows, dtype)
            if name not in features.request_inputs and column.null_count:
                row = rows + pc.index(pc.is_null(column), True).as_py() + 1
                raise BatchRequestError(place, "this row has no value.", column=name, row=row)
            table = table.set_column(table.column_names.index(name), name, column)  # noqa: PLW2901
        yield table
        rows += table.num_rows


def entity_columns(features: ModelFeatures) -> dict[str, pa.DataType | None]:
    """Return the columns of a request that the join needs, and their types: keys, event timestamp, request-time inputs.

    None allows any type.
    """
    order = dict.fromkeys([*(key.name for key in features.join_keys), EVENT_TIMESTAMP])
    return {**order, **features.request_columns, EVENT_TIMESTAMP: TIMESTAMP}


def input_types(features: ModelFeatures) -> dict[str, pa.DataType]:
    """Return model input → the type of its column in a batch input.

    A join key or an event timestamp that is also an input keeps the type that the join needs.
    """
    own = entity_columns(features)
    return {each.name: own.get(each.name) or each.dtype for each in features.signature.inputs}


def _read(file: Path, place: str) -> Iterator[pa.Table]:
    delimiter = DELIMITERS.get(file.suffix)
    try:
        if file.suffix == ".parquet":
            yield from _read_parquet(file, place)
        elif delimiter:
            check_encoding(file, place)
            check_quotes(file, place, delimiter)
            yield from _read_text(file, place, csv.ParseOptions(delimiter=delimiter, newlines_in_values=True))
        else:
            raise BatchRequestError(place, f"its name must end in one of {', '.join(SUFFIXES)}.")
    except FileNotFoundError:
        raise BatchRequestError(place, "there is no such file.") from None
    # UnicodeDecodeError: the name of a column in a damaged parquet file (pyarrow 25).
    except (pa.ArrowInvalid, OSError, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        raise _explained(file, place, delimiter, str(error)) from None


def _explained(file: Path, place: str, delimiter: str | None, error: str) -> BatchRequestError:
    """Return the error for a request that pyarrow could not read."""
    # pyarrow 25 reads a text file in pieces of 1 MiB.
    if "straddling object" in error:
        return BatchRequestError(place, "it has a row that is longer than 1 MiB.")
    if "cannot infer number of columns" in error:
        return BatchRequestError(place, "its first line does not end, or is longer than 1 MiB.")
    if "invalid UTF8 data" in error and (line := line_that_is_not_utf8(file)):
        return BatchRequestError(place, f"line {line} is not UTF-8 text: save the file as UTF-8.")
    if delimiter and UNEVEN.search(error) and (uneven := find_uneven_row(file, delimiter)):
        row, cells, header = uneven
        problem = f"it has {cells} cells, and the header has {len(header)}."
        if hint := separator_hint(header, delimiter):
            problem += hint
        elif len(header) == 1:
            problem += f" {SEPARATORS[delimiter]} must separate the columns of a {file.suffix} file."
        return BatchRequestError(place, problem, row=row)
    return BatchRequestError(place, f"it can't be read ({first_line(error, 120)}).")


def _read_parquet(file: Path, place: str) -> Iterator[pa.Table]:
    # pre_buffer keeps whole row groups: 3 to 6 times the memory (pyarrow 25). With buffer_size and one thread, not even
    # one column of a row group is kept, and reading is as fast while a join runs.
    with pq.ParquetFile(
        file,
        pre_buffer=False,
        buffer_size=READ_BYTES,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=_int96_unit(file),
    ) as source:
        _names(source.schema_arrow, place)
        if source.metadata.num_rows == 0:
            yield no_rows(source.schema_arrow)
        for batch in source.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False):
            yield pa.Table.from_batches([batch])


def _int96_unit(file: Path) -> str:
    """Return the finest unit that can represent all INT96 timestamps of a Parquet file.

    pyarrow's default, nanoseconds, ends in 2262. A column nested in another one is not read: it gets microseconds,
    which Spark writes.
    """
    with pq.ParquetFile(file, pre_buffer=False, coerce_int96_timestamp_unit="s") as source:
        leaves = [source.schema.column(index) for index in range(len(source.schema))]
        leaves = [leaf for leaf in leaves if leaf.physical_type == "INT96"]
        columns = [leaf.path for leaf in leaves if leaf.path == leaf.name]
        furthest = 0
        for batch in source.iter_batches(ROWS_PER_BATCH, columns=columns) if columns else ():
            for column in batch.columns:
                bounds = pc.min_max(pc.cast(column, pa.int64())).as_py()
                furthest = max(furthest, *(abs(bound) + 1 for bound in bounds.values() if bound is not None))
    units = list(INT96_UNITS)[len(columns) < len(leaves) :]
    return next(unit for unit in units if furthest <= INT96_UNITS[unit])


def _read_text(file: Path, place: str, parse_options: csv.ParseOptions) -> Iterator[pa.Table]:
    with csv.open_csv(file, parse_options=parse_options) as header:
        names = _names(header.schema, place)
    # All columns are read as strings and converted to the declared types later, so that the first bad row can be
    # named, and columns that scoring does not need are unchanged (00123 stays 00123).
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with csv.open_csv(file, parse_options=parse_options, convert_options=convert) as source:
        yield no_rows(source.schema)
        for batch in source:
            yield pa.Table.from_batches([batch])


def _names(schema: pa.Schema, place: str) -> list[str]:
    """Return the columns' names. pyarrow 25 reads a header in any encoding, and decodes it only here."""
    names = []
    for number in range(len(schema)):
        try:
            names.append(schema.field(number).name)
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} of the name"
            problem = f"the name of its column number {number + 1} is not UTF-8 ({byte}): save the file as UTF-8."
            raise BatchRequestError(place, problem) from None
    return names


def _check_columns(place: str, found: list[str], features: ModelFeatures, delimiter: str | None) -> None:
    for name in entity_columns(features):
        if name not in found:
            problem = f"this column is missing (the file has {_listed(found)}).{separator_hint(found, delimiter)}"
            raise BatchRequestError(place, problem, column=name)
    for number, name in enumerate(found, 1):
        if not name.strip():
            hint = " It is probably a pandas index: save the table with index=False." if number == 1 else ""
            raise BatchRequestError(place, f"its column number {number} has no name.{hint}")
    added = {feature.input for feature in features.features} | {*OUTPUT_COLUMNS, ROW}
    added |= {feast_name(column) for view in features.views for column in view.columns}
    # DuckDB joins the rows, and compares names case-insensitively.
    taken = {name.casefold() for name in added}
    seen = Counter(name.casefold() for name in found)
    for name in found:
        if seen[name.casefold()] > 1:
            raise BatchRequestError(place, "this column appears twice (in upper or lower case).", column=name)
    for name in found:
        if name.casefold() in taken:
            raise BatchRequestError(
                place, "scoring adds a column of this name: rename it or leave it out.", column=name
            )


def _listed(names: list[str]) -> str:
    plain = [name if name.isprintable() and name == name.strip() else repr(name) for name in names]
    return listed(plain, MAX_LISTED)
