"""Writes scored requests into a Delta table. One commit replaces the rows of one request, and no others.

The table's data files are copies of the request's batch_output files: a row is never encoded twice, unless a column has
a type that Delta does not have. They become visible with the commit, a file of Delta's log that is created only if no
other writer has created it. Data files of a writer that was killed or outrun stay invisible until a vacuum.
"""

import contextlib
import json
import random
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.batch.delta_types import cast, stored_schema
from scoring.batch.manifest import OUTPUT_NAME, Manifest, read_manifest
from scoring.errors import BatchRequestError, SettingsError, StorageError
from scoring.files.atomic import remove_leftovers, scratch_folder
from scoring.files.location import Location, delta_options
from scoring.files.parquet import ROWS_PER_BATCH, no_rows, write_tables
from scoring.files.transfer import Content, holding, publishing, remove_file
from scoring.foreign_errors import first_line, in_one_line

if TYPE_CHECKING:
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction

TABLE_VARIABLE = "SERVING_SCORES_TABLE"
# The partition column. Requests rarely have a column of this name.
COLUMN = "batch_request"
FILE_PREFIX = "scores-"
# Maximum number of attempts to commit one write, because other writers may commit first, and of seconds between two.
ATTEMPTS, LONGEST_WAIT_S = 40, 1.0
COPIED_BYTES = 1 << 20
# Tables of later versions may have features that a writer must observe, such as constraints or a change data feed.
WRITER_VERSION = 2


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
            problem = "is set, and the package deltalake is not installed: install requirements/delta.txt."
            raise SettingsError(TABLE_VARIABLE, problem) from None
        self.place = place
        self._uri = str(place if place.local is None else place.local.absolute())
        self._table: DeltaTable | None = None

    def write(self, request: str, folder: Location) -> Written:
        """Replace the rows of a request by those of the result in its folder, unless the table has them.

        Raises:
            BatchRequestError: there is no result, or its columns do not fit into the table.
            SettingsError: the location has other files, or a table that this project does not write to.
            StorageError: the result can't be read or the table can't be written, or other writers committed at each
                attempt. The table is unchanged.
        """
        with _reading(folder):
            manifest = read_manifest(folder / OUTPUT_NAME)
        while True:
            with self._accessing("writing"):
                version, committed = self._replace(request, folder, manifest)
            # Of two runs over one request, the one that commits last may have read the older result.
            written = manifest
            with _reading(folder):
                manifest = read_manifest(folder / OUTPUT_NAME)
            if manifest.batch_output == written.batch_output:
                return Written(version, committed, manifest)

    def check(self) -> bool:
        """Return whether there is a table, and raise like `write` unless results may be written there."""
        with self._accessing("reading"):
            self._refresh()
        return self._table is not None

    @contextlib.contextmanager
    def _accessing(self, doing: str) -> Iterator[None]:
        from deltalake.exceptions import DeltaError

        try:
            yield
        except (DeltaError, OSError) as error:
            raise StorageError(f"{doing} the Delta table", str(self.place), in_one_line(error)) from error

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
            names = self._names(request)
            if sum(name.startswith(prefix) for name in names) == len(contents):
                # A server may have made our commit although its answer was lost.
                return self._version, any(name.startswith(own) for name in names)
            if not adds:
                with _reading(folder), (folder / contents[0].name).open() as file:
                    stored = stored_schema(request, pq.read_schema(file), COLUMN)
            schema = self._merged(request, stored)
            adds = adds or self._write_files(request, folder, contents, own, stored)
            try:
                self._commit(request, manifest, adds, schema)
            except DeltaError as error:
                problem = in_one_line(error)
                if not isinstance(error, CommitFailedError) and "already exists" not in problem:
                    raise
            else:
                return self._version + 1, True
        problem = f"other writers committed first {ATTEMPTS} times in a row ({problem}): run again when fewer write"
        raise StorageError("committing to", str(self.place), problem)

    def _commit(self, request: str, manifest: Manifest, adds: "list[AddAction]", schema: "Schema") -> None:
        """Commit the files if the table's latest version is the one that was read."""
        from deltalake import CommitProperties
        from deltalake.transaction import create_table_with_add_actions

        sha256 = manifest.batch_output.sha256
        metadata = {COLUMN: request, "model_version": manifest.origin.model, "content_sha256": sha256}
        # deltalake's own retries would let two writers of the same request both add their rows (1.6).
        properties = CommitProperties(metadata, max_commit_retries=0)
        if self._table is None:
            options: dict[str, Any] = {"storage_options": delta_options(self.place), "commit_properties": properties}
            create_table_with_add_actions(self._uri, schema, adds, partition_by=[COLUMN], **options)
        else:
            filters = [(COLUMN, "=", request)]
            self._table.create_write_transaction(
                list(adds), "overwrite", schema, [COLUMN], filters, commit_properties=properties
            )

    @property
    def _version(self) -> int:
        return -1 if self._table is None else int(self._table.version())

    def _names(self, request: str) -> list[str]:
        """Return the names of the request's current files."""
        if self._table is None:
            return []
        files = self._table.file_uris(file_pruning_predicate=[(COLUMN, "=", request)])
        return [uri.rpartition("/")[2] for uri in files]

    def _refresh(self) -> None:
        """Read the table's latest version, if there is a table. Raise unless this project can write there."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        if self._table is not None:
            self._table.update_incremental()
        else:
            try:
                self._table = DeltaTable(self._uri, storage_options=delta_options(self.place))
            except TableNotFoundError:
                self._check_empty()
                return
        metadata, version = self._table.metadata(), self._table.protocol().min_writer_version
        columns = metadata.partition_columns
        if columns != [COLUMN] or version > WRITER_VERSION:
            found = f"partition columns {columns} and writer version {version}, not {[COLUMN]} and {WRITER_VERSION}"
            problem = f"names a Delta table of other software, {self.place}, with {found}: name a table of its own."
            raise SettingsError(TABLE_VARIABLE, problem)
        if metadata.configuration.get("delta.appendOnly") == "true":
            problem = f"names a Delta table, {self.place}, whose property delta.appendOnly keeps old rows: unset it."
            raise SettingsError(TABLE_VARIABLE, problem)

    def _check_empty(self) -> None:
        from pyarrow.fs import FileSelector

        filesystem, path = self.place.filesystem()
        names = [each.base_name for each in filesystem.get_file_info(FileSelector(path, allow_not_found=True))]
        # A writer that was killed before the first commit leaves its own files.
        if others := sorted(name for name in names if not name.startswith((f"{COLUMN}=", "_delta_log"))):
            problem = f"which has other files ({others[0]}) and is not a Delta table: name a new folder."
            raise SettingsError(TABLE_VARIABLE, f"names {self.place}, {problem}")

    def _merged(self, request: str, stored: pa.Schema) -> "Schema":
        """Return the table's schema with the additional columns of a result.

        Raises:
            BatchRequestError: a column has another type in the table, or a name that differs in case alone.
        """
        from deltalake import Schema

        fields = list(self._table.schema().fields) if self._table else []
        known = {field.name.casefold(): field for field in fields}
        for field in Schema.from_arrow(stored if fields else stored.append(pa.field(COLUMN, pa.string()))).fields:
            other = known.setdefault(field.name.casefold(), field)
            if other is field:
                fields.append(field)
            elif other.name != field.name:
                problem = f"{self.place} has column {other.name!r}, and many readers ignore case: rename it."
                raise BatchRequestError(request, problem, column=field.name)
            elif other.type != field.type:
                types = [json.loads(each.type.to_json()) for each in (other, field)]
                problem = f"its type is {types[0]} in {self.place}, and {types[1]} in the result: write one type in all"
                raise BatchRequestError(
                    request, f"{problem} requests, or set {TABLE_VARIABLE} to another table.", field.name
                )
        for field in fields:
            if not field.nullable and field.name not in {*stored.names, COLUMN}:
                problem = f"{self.place} has it as NOT NULL, and the result lacks it: drop the constraint."
                raise BatchRequestError(request, problem, column=field.name)
        return Schema(fields)

    def _write_files(
        self, request: str, folder: Location, contents: Sequence[Content], prefix: str, stored: pa.Schema
    ) -> "list[AddAction]":
        """Write the files of a result into the table's folder. Remove them if one can't be written."""
        from deltalake.transaction import AddAction

        # Readers disagree on how often a path is decoded. The name of a request has nothing to decode.
        destination = self.place / f"{COLUMN}={request}"
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
                            raise FileNotFoundError("it differs from manifest.json")
                    rows, size = pq.read_metadata(part).num_rows, part.stat().st_size
                path, statistics = f"{COLUMN}={request}/{file.name}", json.dumps({"numRecords": rows})
                adds.append(AddAction(path, size, {COLUMN: request}, time.time_ns() // 10**6, True, statistics))
        except BaseException:
            for file in files:
                with contextlib.suppress(StorageError):
                    remove_file(file)
            raise
        return adds


@contextlib.contextmanager
def _reading(folder: Location) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, msgspec.MsgspecError, pa.ArrowInvalid) as error:
        problem = f"there is no complete result ({first_line(error)}): materialize it."
        raise BatchRequestError(str(folder / OUTPUT_NAME), problem) from None


def _write_file(request: str, source: Any, part: Path, stored: pa.Schema) -> None:
    with pq.ParquetFile(source, pre_buffer=False) as opened:
        schema = opened.schema_arrow
        if [(field.name, field.type) for field in schema] != [(field.name, field.type) for field in stored]:
            batches = (pa.Table.from_batches([batch]) for batch in opened.iter_batches(batch_size=ROWS_PER_BATCH))
            tables = batches if opened.metadata.num_rows else iter([no_rows(schema)])
            write_tables((cast(request, table, stored) for table in tables), part, {})
            return
    with part.open("wb") as copy, source.open("rb") if isinstance(source, Path) else source as file:
        file.seek(0)
        shutil.copyfileobj(file, copy, COPIED_BYTES)
