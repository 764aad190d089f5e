"""The files of the prediction log: Parquet, in a folder for each day (UTC)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.errors import StorageError, listed
from scoring.files.location import Entry, Location
from scoring.models.outputs import PREDICTION
from scoring.monitoring.prediction_log import (
    LATENCY_MS,
    LOG_TIMESTAMP,
    POLICY,
    PROBLEM,
    REQUEST_COLUMNS,
    REQUEST_ID,
    ROLE,
)

FETCHED_AT_ONCE = 8
BATCH_ROWS = 65_536
CONSTANTS = "model_name", "model_version", "feature_service", ROLE, POLICY
"""Columns with one value in all rows of a file."""


def day_folder(log: Location, day: str) -> Location:
    """Return the folder with the files of one day (UTC), `2026-11-30`."""
    return log / f"date={day}"


def log_files(folder: Location) -> list[Entry]:
    """Return the files of a day's folder, sorted by name; none if there is no such folder. Raises StorageError."""
    try:
        files = [entry for entry in folder.files() if entry.name.endswith(".parquet")]
    except FileNotFoundError:
        return []
    return sorted(files, key=lambda entry: entry.name)


class LogFile(msgspec.Struct, frozen=True):
    """A file of the log, with a copy on this machine."""

    place: Location
    copy: Path
    schema: pa.Schema
    rows: int
    constants: Mapping[str, Any]
    """The values of CONSTANTS."""

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield these columns, by default all, some rows at a time. Raises StorageError."""
        with _reading(self.place), pq.ParquetFile(self.copy) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])


def fetch_log(folder: Location, scratch: Path) -> list[LogFile]:
    """Copy the files of a day's folder to `scratch`, several at a time. Return them sorted by name.

    Raises:
        StorageError: a file can't be read, or is not one of the log.
    """

    def fetched(entry: Entry) -> LogFile:
        place, copy = folder / entry.name, scratch / entry.name
        with _reading(place):
            copy.write_bytes(place.read_bytes())
            with pq.ParquetFile(copy) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
                needed = {*CONSTANTS, LOG_TIMESTAMP, REQUEST_ID, LATENCY_MS, PROBLEM, REQUEST_COLUMNS.decode()}
                known = {*schema.names, *(name.decode() for name in schema.metadata or ())}
                if missing := sorted(needed - known):
                    raise ValueError(f"it lacks {listed(missing)}")
                if missing := sorted(set(request_columns(schema)) - set(schema.names)):
                    raise ValueError(f"it lacks {listed(missing)}")
                if not rows:
                    raise ValueError("it has no rows")
                constants = next(file.iter_batches(1, columns=list(CONSTANTS))).to_pylist()[0]
        return LogFile(place, copy, schema, rows, constants)

    with ThreadPoolExecutor(FETCHED_AT_ONCE, "fetch") as pool:
        return list(pool.map(fetched, log_files(folder)))


def request_columns(schema: pa.Schema) -> list[str]:
    """Return the request's columns in a file with this schema."""
    return msgspec.json.decode((schema.metadata or {})[REQUEST_COLUMNS], type=list[str])


def logged_outputs(schema: pa.Schema) -> list[str]:
    """Return the outputs in a file with this schema."""
    requested = request_columns(schema)
    outputs = [name for name in schema.names if name == PREDICTION or name.startswith(f"{PREDICTION}_")]
    return [name for name in outputs if name not in requested]


def answered(rows: pa.Table) -> pa.Table:
    """Return the logged rows of requests that were answered with scores."""
    return rows.filter(pc.is_null(rows[PROBLEM]))


@contextlib.contextmanager
def _reading(place: Location) -> Iterator[None]:
    """Raise a StorageError that names the file for any error of a damaged one."""
    try:
        yield
    except (OSError, LookupError, ValueError, pa.ArrowException, msgspec.MsgspecError) as error:
        raise StorageError("reading", str(place), error) from None
