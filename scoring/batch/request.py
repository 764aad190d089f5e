"""Read a batch request: a file of entity rows, each with a moment in time."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from scoring.arrow.timestamps import MOMENT
from scoring.batch.request_values import converted, to_value
from scoring.batch.text_request import check_encoding, check_quotes, line_that_is_no_text, uneven_row
from scoring.errors import BatchRequestError, first_line
from scoring.feast_plugins.join_keys import ROW
from scoring.features.model_features import ModelFeatures
from scoring.files.parquet import ROWS_PER_BATCH

EVENT_TIMESTAMP = "event_timestamp"
OUTPUT_COLUMNS = ("prediction", "reason", "model_name", "model_version", "feature_service")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
NAMES_OF = {",": "Commas", "\t": "Tabs"}
SUFFIXES = (*DELIMITERS, ".parquet")
NAMES_TOLD = 20
NO_MOMENT = "is not an ISO 8601 date and time of the years 1678 to 2261"
# How pyarrow says that a row has more or fewer cells than the header; which row it is, it does not always say, and then
# counts the header (pyarrow 25).
UNEVEN = re.compile(r"CSV parse error: (Row #\d+: )?Expected \d+ columns")
READ_BYTES = 1 << 16


def read_batch_request(file: Path, features: ModelFeatures, origin: str | None = None) -> Iterator[pa.Table]:
    """The request's rows in the file's order, with all of its columns, ROWS_PER_BATCH or so at a time; at least once.

    Join keys get the type that Feast declares, request-time inputs the model's type, `event_timestamp` becomes
    timestamp[us, UTC] (a time without a zone is UTC). Other columns stay as the file has them: text from a CSV file.

    Args:
        file: `.csv` or `.tsv` with a header, or `.parquet`.
        features: what the model needs: which keys, which request-time inputs.
        origin: where `file` is a copy of, for the errors.

    Raises:
        BatchRequestError: the file can't be read, a column is missing or clashes with one that scoring adds, or a value
            does not fit. It names file, column and first bad row. It may come after good rows: publish nothing before
            the last row was read.
    """
    shown = origin or str(file)
    types, needed = request_types(features), tuple(entity_columns(features))
    rows = 0
    for table in _read(file, shown):
        if rows == 0:
            _check_columns(shown, table.column_names, needed, features)
        yield _typed(shown, table, rows, needed, types, optional=features.request_inputs)
        rows += table.num_rows


def entity_columns(features: ModelFeatures) -> list[str]:
    """The columns of a request that the join needs: join keys, event timestamp, request-time inputs."""
    names, keys = list(features.request_columns), len(features.join_keys)
    return [*names[:keys], EVENT_TIMESTAMP, *names[keys:]]


def request_types(features: ModelFeatures) -> dict[str, pa.DataType]:
    """Their types; without those that may have any."""
    typed = {name: dtype for name, dtype in features.request_columns.items() if dtype is not None}
    return typed | {EVENT_TIMESTAMP: MOMENT}


def _read(file: Path, shown: str) -> Iterator[pa.Table]:
    try:
        if file.suffix == ".parquet":
            yield from _read_parquet(file, shown)
        elif file.suffix in DELIMITERS:
            check_encoding(file, shown)
            check_quotes(file, shown, DELIMITERS[file.suffix])
            options = csv.ParseOptions(delimiter=DELIMITERS[file.suffix], newlines_in_values=True)
            yield from _read_text(file, shown, options)
        else:
            raise BatchRequestError(shown, f"its name must end in one of {', '.join(SUFFIXES)}.")
    except FileNotFoundError:
        raise BatchRequestError(shown, "there is no such file.") from None
    # UnicodeDecodeError: the name of a column in a damaged parquet file (pyarrow 25).
    except (pa.ArrowInvalid, OSError, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        # pyarrow 25 reads a text file by MiB.
        if "straddling object" in str(error):
            raise BatchRequestError(shown, "it has a row that is longer than 1 MiB.") from None
        if "cannot infer number of columns" in str(error):
            raise BatchRequestError(shown, "its first line does not end, or is longer than 1 MiB.") from None
        if "invalid UTF8 data" in str(error) and (line := line_that_is_no_text(file)):
            problem = f"line {line}: it is no text in UTF-8: save the file as UTF-8."
            raise BatchRequestError(shown, problem) from None
        if UNEVEN.search(str(error)) and (uneven := uneven_row(file, DELIMITERS[file.suffix])):
            row, cells, expected = uneven
            problem = f"it has {cells} cells, and the header has {expected}."
            if expected == 1:
                problem += f" {NAMES_OF[DELIMITERS[file.suffix]]} must separate the columns of a {file.suffix} file."
            raise BatchRequestError(shown, problem, row=row) from None
        raise BatchRequestError(shown, f"it can't be read ({first_line(error, 120)}).") from None


def _read_parquet(file: Path, shown: str) -> Iterator[pa.Table]:
    # pre_buffer keeps whole row groups: 3 to 6 times the memory (pyarrow 25). With buffer_size and one thread not even
    # a column of one is kept, and it is as fast beside a join.
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_BYTES, page_checksum_verification=True) as source:
        _names(source.schema_arrow, shown)
        if source.metadata.num_rows == 0:
            yield pa.Table.from_batches([], source.schema_arrow)
        for batch in source.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False):
            yield pa.Table.from_batches([batch])


def _read_text(file: Path, shown: str, parse_options: csv.ParseOptions) -> Iterator[pa.Table]:
    with csv.open_csv(file, parse_options=parse_options) as header:
        names = _names(header.schema, shown)
    # As text: what a cell means is decided by the declared types, so the first bad row can be named, and what scoring
    # does not need comes out as it went in (00123 stays 00123).
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with csv.open_csv(file, parse_options=parse_options, convert_options=convert) as source:
        empty = True
        for batch in source:
            empty = False
            yield pa.Table.from_batches([batch])
        if empty:
            yield source.schema.empty_table()


def _names(schema: pa.Schema, shown: str) -> list[str]:
    """The columns' names, which pyarrow makes texts of only now: it reads a header of any encoding (pyarrow 25)."""
    names = []
    for place in range(len(schema)):
        try:
            names.append(schema.field(place).name)
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at place {error.start + 1} of the name"
            problem = f"the name of its column number {place + 1} is not UTF-8 ({byte}): save the file as UTF-8."
            raise BatchRequestError(shown, problem) from None
    return names


def _typed(
    shown: str, table: pa.Table, start: int, needed: tuple[str, ...], types: dict[str, pa.DataType], optional: Any
) -> pa.Table:
    for name in needed:
        column = table[name]
        if name in types:
            convert = functools.partial(to_value, target=types[name])
            wanted = NO_MOMENT if pa.types.is_timestamp(types[name]) else f"is not {types[name]}"
            column = converted(shown, name, column, start, convert, wanted)
        if name not in optional and column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise BatchRequestError(shown, "this row has no value.", column=name, row=start + row + 1)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _listed(names: list[str]) -> str:
    told = [name if name.isprintable() else repr(name) for name in names[:NAMES_TOLD]]
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return ", ".join(told) + more


def _check_columns(shown: str, found: list[str], needed: tuple[str, ...], features: ModelFeatures) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise BatchRequestError(shown, f"this column is missing (the file has {_listed(found)}).", column=missing[0])
    nameless = [place for place, name in enumerate(found, 1) if not name.strip()]
    if nameless:
        raise BatchRequestError(shown, f"its column number {nameless[0]} has no name.")
    # DuckDB, which joins, does not tell upper from lower case in names.
    seen = Counter(name.casefold() for name in found)
    twice = [name for name in found if seen[name.casefold()] > 1]
    if twice:
        raise BatchRequestError(shown, "this column stands there twice (upper and lower case count as one).", twice[0])
    added = {feature.input for feature in features.features} | {*OUTPUT_COLUMNS, ROW}
    added |= {column for view in features.views for column in view.columns}
    clash = [name for name in found if name.casefold() in {each.casefold() for each in added}]
    if clash:
        raise BatchRequestError(
            shown,
            "scoring adds a column of this name itself: rename it or leave it out.",
            column=clash[0],
        )
