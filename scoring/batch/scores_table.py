"""Writes scored requests into a Delta table. One commit replaces the rows of one request, and no others.

The table's data files are copies of the request's batch_output files: a row is never encoded twice, unless a column has
a type that Delta does not have. They become visible with the commit, a file of Delta's log that is created only if no
other writer has created it. Data files of a writer that was killed or outrun stay invisible until a vacuum.
"""

import contextlib
import json
import random
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from scoring.batch.generations import remove_file
from scoring.batch.manifest import OUTPUT_NAME, Manifest, read_manifest
from scoring.errors import BatchRequestError, SettingsError, StorageError, first_line
from scoring.files.atomic import remove_leftovers, scratch_folder
from scoring.files.location import Location, delta_options
from scoring.files.parquet import ROWS_PER_BATCH, no_rows, write_tables
from scoring.files.transfer import Content, holding, publishing

if TYPE_CHECKING:
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction

VARIABLE = "SERVING_SCORES_TABLE"
# The partition column. `request` would collide with columns of requests more often.
COLUMN = "batch_request"
FILE_PREFIX = "scores-"
# Commits of other writers that one commit gives way to, waiting up to LONGEST_WAIT_S each time.
ATTEMPTS, LONGEST_WAIT_S = 40, 1.0
COPIED_BYTES = 1 << 20
# Tables of later versions may have features that a writer must observe, such as constraints or a change data feed.
WRITER_VERSION = 2
FITTING = (
    pt.is_boolean, pt.is_signed_integer, pt.is_float32, pt.is_float64, pt.is_string, pt.is_large_string, pt.is_binary,
    pt.is_large_binary, pt.is_date32, pt.is_decimal128, pt.is_null,
)  # fmt: skip
CONVERTED = {
    pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20),
    pa.float16(): pa.float32(), pa.date64(): pa.date32(), pa.string_view(): pa.string(), pa.binary_view(): pa.binary(),
}  # fmt: skip


class Written(msgspec.Struct, frozen=True):
    """The rows of a request in the table."""

    version: int
    """A version of the table that has these rows."""
    committed: bool
    """Whether this call has committed them; the table may have had them before."""
    manifest: Manifest
    """Describes the result that has these rows."""


class ScoresTable:
    """A Delta table with the rows of many requests, on this machine or in S3."""

    def __init__(self, place: Location) -> None:
        """Store the table's location; the first write opens or creates the table.

        Raises:
            SettingsError: the package deltalake is not installed.
        """
        try:
            import deltalake  # noqa: F401
        except ImportError:
            raise SettingsError(
                VARIABLE, "is set, and the package deltalake is not installed: install requirements/delta.txt."
            ) from None
        self.place = place
        self._uri = str(place if place.local is None else place.local.absolute())
        self._options = delta_options(place)
        self._table: DeltaTable | None = None

    def write(self, request: str, folder: Location) -> Written:
        """Replace the rows of a request by those of the result in its folder, unless the table has them.

        Raises:
            BatchRequestError: there is no result, or its columns do not fit into the table.
            SettingsError: the location has other files, or a table that this project does not write to.
            StorageError: the result can't be read or the table can't be written, or other writers committed at each
                attempt. The table is unchanged.
        """
        while True:
            manifest = _published(folder)
            with _one_line(self.place):
                version, committed = self._replace(request, folder, manifest)
            # Of two runs over one request, the one that commits last may have read the older result.
            if _published(folder).batch_output == manifest.batch_output:
                return Written(version, committed, manifest)

    def _replace(self, request: str, folder: Location, manifest: Manifest) -> tuple[int, bool]:
        """Return a version that has the manifest's rows, and whether this call has committed them."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        contents = manifest.parts or (manifest.batch_output,)
        prefix = f"{FILE_PREFIX}{manifest.batch_output.sha256}-"
        own = f"{prefix}{uuid.uuid4().hex}-"
        adds: list[AddAction] = []
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, min(LONGEST_WAIT_S, 0.02 * 2**attempt)))  # noqa: S311 - no secret
            self._refresh()
            if self._table and self._count(request, prefix) == len(contents):
                # A server may have made our commit although its answer was lost.
                return self._table.version(), self._count(request, own) > 0
            if not adds:
                with _reading(folder), (folder / contents[0].name).open() as file:
                    stored = _stored_schema(request, pq.read_schema(file))
            schema = self._merged(request, stored)
            adds = adds or self._write_files(request, folder, contents, own, stored)
            try:
                return self._commit(request, manifest, adds, schema), True
            except DeltaError as error:
                problem = str(error)
                created_by_another = self._table is None and self._exists()
                if not isinstance(error, CommitFailedError) and not created_by_another:
                    raise
        problem = f"other writers committed first {ATTEMPTS} times in a row ({problem}): run again when fewer write"
        raise StorageError("committing to", str(self.place), problem)

    def _commit(self, request: str, manifest: Manifest, adds: "list[AddAction]", schema: "Schema") -> int:
        """Commit the files if the table is as it was last read. Return the new version."""
        from deltalake import CommitProperties
        from deltalake.transaction import create_table_with_add_actions

        properties = CommitProperties(
            custom_metadata={
                COLUMN: request,
                "model_version": manifest.origin.model,
                "content_sha256": manifest.batch_output.sha256,
            },
            # deltalake's own retries would let two writers of the same request both add their rows (1.6).
            max_commit_retries=0,
        )
        if self._table is None:
            create_table_with_add_actions(
                self._uri,
                schema,
                adds,
                partition_by=[COLUMN],
                description="Scores of batch requests, written by model-serving.",
                storage_options=self._options,
                commit_properties=properties,
            )
            return 0
        self._table.create_write_transaction(
            list(adds),
            "overwrite",
            schema,
            partition_by=[COLUMN],
            partition_filters=[(COLUMN, "=", request)],
            commit_properties=properties,
        )
        return int(self._table.version()) + 1

    def _refresh(self) -> None:
        """Read the table's latest version, if there is a table.

        Raises:
            SettingsError: there are other files, or a table that this project does not write to.
        """
        from deltalake import DeltaTable

        if self._table is not None:
            self._table.update_incremental()
        elif self._exists():
            self._table = DeltaTable(self._uri, storage_options=self._options)
        else:
            self._check_no_other_files()
            return
        columns, version = self._table.metadata().partition_columns, self._table.protocol().min_writer_version
        if columns != [COLUMN] or version > WRITER_VERSION:
            raise SettingsError(
                VARIABLE,
                f"names a Delta table that other software made or changed, {self.place}: its partition columns are "
                f"{columns} and its writer version is {version}, instead of {[COLUMN]} and {WRITER_VERSION}. Name a "
                "table of its own.",
            )

    def _exists(self) -> bool:
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(self._uri, self._options))

    def _check_no_other_files(self) -> None:
        from pyarrow.fs import FileSelector

        filesystem, path = self.place.filesystem()
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        # A writer that was killed before its first commit leaves its own.
        others = sorted(each.base_name for each in found if not each.base_name.startswith((f"{COLUMN}=", "_delta_log")))
        if others:
            raise SettingsError(
                VARIABLE,
                f"names {self.place}, which has other files ({others[0]}) and is not a Delta table: name a new folder.",
            )

    def _count(self, request: str, prefix: str) -> int:
        """Return how many of the request's current files have names with this prefix."""
        assert self._table is not None  # noqa: S101 - for the type checker
        files = self._table.file_uris(file_pruning_predicate=[(COLUMN, "=", request)])
        return sum(uri.rpartition("/")[2].startswith(prefix) for uri in files)

    def _merged(self, request: str, stored: pa.Schema) -> "Schema":
        """Return the table's schema with the additional columns of a result.

        Raises:
            BatchRequestError: a column has another type in the table, or a name that differs in case alone.
        """
        from deltalake import Schema

        fields = list(self._table.schema().fields) if self._table else []
        known = {field.name.casefold(): field for field in fields}
        own = pa.schema([*stored, *([] if self._table else [pa.field(COLUMN, pa.string())])])
        for field in Schema.from_arrow(own).fields:
            other = known.setdefault(field.name.casefold(), field)
            if other is field:
                fields.append(field)
            elif other.name != field.name:
                problem = f"the table has column {other.name!r}, and many readers ignore case: rename it."
                raise BatchRequestError(request, f"{self.place}: {problem}", column=field.name)
            elif other.type != field.type:
                types = [json.loads(each.type.to_json()) for each in (other, field)]
                problem = f"the table has type {types[0]}, and the result has {types[1]}"
                remedy = f"write one type in all requests, or set {VARIABLE} to another table."
                raise BatchRequestError(request, f"{self.place}: {problem}: {remedy}", column=field.name)
        return Schema(fields)

    def _write_files(
        self, request: str, folder: Location, contents: Sequence[Content], prefix: str, stored: pa.Schema
    ) -> "list[AddAction]":
        """Write the files of a result into the table's folder. Remove them if one can't be written."""
        from deltalake.transaction import AddAction

        # Readers disagree on how often a path is decoded. The name of a request has nothing to decode.
        name = f"{COLUMN}={request}"
        destination = self.place / name
        if destination.local is not None and destination.local.is_dir():
            remove_leftovers(destination.local, f".{FILE_PREFIX}", ".part")
        files = [destination / f"{prefix}{place}.parquet" for place in range(len(contents))]
        adds = []
        try:
            for file, content in zip(files, contents, strict=True):
                with scratch_folder() as scratch, publishing(file) as part, _reading(folder):
                    with holding(folder / content.name, scratch / "source") as held:
                        _write_file(request, held.file, part, stored)
                        if held.content().sha256 != content.sha256:
                            raise _incomplete(folder, "it differs from manifest.json")
                    rows, size = pq.read_metadata(part).num_rows, part.stat().st_size
                path, statistics = f"{name}/{file.name}", json.dumps({"numRecords": rows})
                adds.append(AddAction(path, size, {COLUMN: request}, time.time_ns() // 10**6, True, statistics))
        except BaseException:
            for file in files:
                with contextlib.suppress(StorageError):
                    remove_file(file)
            raise
        return adds


def _published(folder: Location) -> Manifest:
    with _reading(folder):
        return read_manifest(folder / OUTPUT_NAME)


@contextlib.contextmanager
def _reading(folder: Location) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, msgspec.MsgspecError, pa.ArrowInvalid) as error:
        raise _incomplete(folder, first_line(error)) from None


def _incomplete(folder: Location, problem: str) -> BatchRequestError:
    return BatchRequestError(str(folder / OUTPUT_NAME), f"there is no complete result ({problem}): materialize it.")


def _write_file(request: str, source: Any, part: Path, stored: pa.Schema) -> None:
    with pq.ParquetFile(source, pre_buffer=False) as opened:
        schema = opened.schema_arrow
        if [(field.name, field.type) for field in schema] != [(field.name, field.type) for field in stored]:
            batches = (pa.Table.from_batches([batch]) for batch in opened.iter_batches(batch_size=ROWS_PER_BATCH))
            tables = batches if opened.metadata.num_rows else iter([no_rows(schema)])
            write_tables((_cast(request, table, stored) for table in tables), part, {})
            return
    with part.open("wb") as copy, contextlib.ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        file.seek(0)
        shutil.copyfileobj(file, copy, COPIED_BYTES)


def _cast(request: str, table: pa.Table, stored: pa.Schema) -> pa.Table:
    columns = []
    for field in stored:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowInvalid:
            problem = f"a {table[field.name].type} value does not fit {field.type}, the type in a Delta table."
            raise BatchRequestError(request, problem, column=field.name) from None
    return pa.table(columns, schema=stored)


def _stored_schema(request: str, schema: pa.Schema) -> pa.Schema:
    """Return the columns of a result with the types in which a Delta table stores them.

    Columns without any value (of type null) are omitted: they read as null.

    Raises:
        BatchRequestError: a Delta table has no such type, or a column has the name of the partition column.
    """
    fields = []
    for field in schema:
        stored = _stored(field.type)
        if field.name.casefold() == COLUMN:
            raise BatchRequestError(
                request, "the scores table has a column of this name: rename it.", column=field.name
            )
        if stored is None:
            problem = f"a Delta table has no type for {field.type}: convert the column, or leave it out."
            raise BatchRequestError(request, problem, column=field.name)
        if not pt.is_null(stored):
            fields.append(pa.field(field.name, stored))
    return pa.schema(fields)


def _stored(found: pa.DataType) -> pa.DataType | None:
    """Return the type that represents all values of a type in a Delta table; None if there is none."""
    if pt.is_dictionary(found):
        return _stored(found.value_type)
    if pt.is_timestamp(found):
        return pa.timestamp("us", "UTC")  # without a zone, it is UTC, as in a request
    if pt.is_list(found) or pt.is_large_list(found) or pt.is_fixed_size_list(found):
        item = _stored(found.value_type)
        return None if item is None or pt.is_null(item) else pa.list_(item)
    return found if any(fits(found) for fits in FITTING) else CONVERTED.get(found)


@contextlib.contextmanager
def _one_line(place: Location) -> Iterator[None]:
    """Raise a StorageError with one line for deltalake's errors, which have several, in color."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as error:
        line = " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error)).split())
        raise StorageError("writing the Delta table", str(place), line) from error
