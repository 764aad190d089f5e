"""Finds the files of a feature source, local or in an object store, with their columns and partition keys.

In a folder, the data are the files named `*.parquet`, `*.parq` or `*.pq`, and Parquet files without a suffix. Names
that begin with `_` or `.` are ignored: other tools use them for unfinished files, logs and checkpoints. Partition keys
are folders named `key=value` below the source's own path, never above it.

The data of a Delta table are the files that its log names: its folder also has those of older versions.
"""

import re
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from scoring.errors import UnreadableSource
from scoring.files.location import delta_server
from scoring.foreign_errors import first_line, in_one_line

SUFFIXES = (".parquet", ".parq", ".pq")
MAGIC = b"PAR1"
# INT96 in nanoseconds would turn the year 9999 into 1816 (pyarrow 25).
FORMAT = ds.ParquetFileFormat(coerce_int96_timestamp_unit="us")
DELTA_LOG = "/_delta_log/"
DECLARE_DELTA = "name its folder, and declare file_format=DeltaFormat()"
# Of the features that a reader must observe; others, such as deletion vectors, change what is in the files.
KNOWN_FEATURES = {"timestampNtz"}
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# Number of footers read concurrently; in an object store, each read is a separate request.
THREADS = 16


class SourceFile(msgspec.Struct, frozen=True):
    """One Parquet file of a source."""

    path: str
    """Path in its file system."""
    fragment: ds.ParquetFileFragment
    """The file with its footer."""
    partition: dict[str, str | None]
    """Keys and values of its partition folders below the source's own path."""

    @property
    def schema(self) -> pa.Schema:
        """Return the columns in the file itself."""
        return self.fragment.physical_schema

    @property
    def is_local(self) -> bool:
        """Return whether it is on this machine."""
        return isinstance(self.fragment.filesystem, LocalFileSystem)


def source_files(source: FileSource, repo: Path | None) -> list[SourceFile]:
    """Return the source's files that have rows, by path, or all its files if none has rows.

    Args:
        source: its path is a file, a folder, a Delta table's folder if declared so, or, if nothing exists there, a
            pattern (`*`, `**`, `?`, `[..]`).
        repo: the folder that relative paths start at.

    Raises:
        UnreadableSource: there is no file, or one is not a complete Parquet file.
    """
    declared = source.file_options.uri
    uri = FileSource.get_uri_for_file_path(repo_path=repo, uri=declared)
    try:
        filesystem, path = _place(source, uri)
        is_delta = isinstance(source.file_format, DeltaFormat)
        paths = list(_delta_paths(source, uri, path) if is_delta else _paths(filesystem, path, declared))
        with ThreadPoolExecutor(THREADS) as threads:
            opened = list(threads.map(lambda each: _opened(declared, filesystem, *each), paths))
    except (OSError, pa.ArrowException) as error:
        raise UnreadableSource(declared, f"listing {uri} failed: {first_line(error)}") from error
    files = [file for file in opened if file is not None]
    if not files:
        raise UnreadableSource(
            declared,
            f"there is no Parquet file at {uri}. Names that begin with _ or . are not read; check the path of the "
            "source, and that its files were written.",
        )
    return [file for file in files if file.fragment.metadata.num_rows] or files


def _place(source: FileSource, uri: str) -> tuple[FileSystem, str]:
    options = (source.file_options.s3_endpoint_override, source.resolve_credentials())
    filesystem, path = FileSource.create_filesystem_and_path(uri, *options)
    if filesystem is None:
        filesystem, path = FileSystem.from_uri(uri) if "://" in uri else (LocalFileSystem(), str(Path(uri).absolute()))
    return filesystem, path.rstrip("/")


def _paths(filesystem: FileSystem, path: str, declared: str) -> Iterator[tuple[str, dict[str, str | None], bool]]:
    """Yield the path, the partition keys, and whether the name marks a Parquet file, of each file that may be data."""
    found = filesystem.get_file_info(path)
    if found.type == FileType.File:
        yield path, {}, True
        return
    pattern: Sequence[str] = ()
    if found.type == FileType.NotFound:
        # The folders above, which the declaration does not name, are not part of the pattern.
        parts = PurePosixPath(declared.partition("://")[2] or declared).parts
        first = next((place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
        pattern = parts[first:]
        path = "/".join(path.split("/")[: -len(pattern)]) if pattern else path
    if found.type == FileType.NotFound and not pattern:
        return
    listed: list[FileInfo] = filesystem.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    tables = tuple({f"{each.path.partition(DELTA_LOG)[0]}/" for each in listed if DELTA_LOG in each.path})
    for file in sorted((each for each in listed if each.type == FileType.File), key=lambda each: each.path):
        *folders, name = file.path[len(path) :].strip("/").split("/")
        if any(_is_hidden(folder, pattern) for folder in folders if not _is_underscored_key(folder)):
            continue
        named = name.lower().endswith(SUFFIXES)
        if _is_hidden(name, pattern) or not (
            _matches([*folders, name], pattern) if pattern else named or "." not in name
        ):
            continue
        if file.path.startswith(tables):
            raise UnreadableSource(declared, f"{file.path} is in a Delta table: {DECLARE_DELTA}.")
        yield file.path, dict(_partition_keys(folders)), named or bool(pattern)


def _delta_paths(source: FileSource, uri: str, path: str) -> Iterator[tuple[str, dict[str, str | None], bool]]:
    """Yield what `_paths` yields, for the files of a Delta table's latest version.

    Raises:
        UnreadableSource: there is no table, or it has features that this project does not read.
    """
    declared = source.file_options.uri
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        problem = "a Delta table needs the package deltalake: install requirements/delta.txt."
        raise UnreadableSource(declared, problem) from None
    options = (source.resolve_credentials() or {}) | delta_server(source.file_options.s3_endpoint_override or "")
    try:
        table = DeltaTable(uri, storage_options=options)
        actions = pa.table(table.get_add_actions(flatten=True))
    except (DeltaError, OSError) as error:
        raise UnreadableSource(declared, f"the Delta table {uri} can't be read: {in_one_line(error)}") from error
    features = set(table.protocol().reader_features or ())
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    if unknown := sorted(features - KNOWN_FEATURES):
        problem = f"the Delta table {uri} has features that this project does not read: {', '.join(unknown)}."
        raise UnreadableSource(declared, problem)
    keys = table.metadata().partition_columns
    values = [actions[f"partition.{key}"].cast(pa.string()).to_pylist() for key in keys]
    for place, name in enumerate(actions["path"].to_pylist()):
        partition = {key: column[place] for key, column in zip(keys, values, strict=True)}
        yield f"{path}/{urllib.parse.unquote(name)}", partition, True


def _is_hidden(name: str, pattern: Sequence[str]) -> bool:
    return name.startswith(("_", ".")) and not any(part[0] == name[0] and fnmatchcase(name, part) for part in pattern)


def _is_underscored_key(folder: str) -> bool:
    return folder.startswith("_") and "=" in folder


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _partition_keys(folders: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for folder in folders:
        key, separator, value = folder.partition("=")
        if key and separator:
            value = urllib.parse.unquote(value)
            yield urllib.parse.unquote(key), None if value == NULL_PARTITION else value


def _opened(
    source: str, filesystem: FileSystem, path: str, partition: dict[str, str | None], named: bool
) -> SourceFile | None:
    """Open a file and read its footer. Return None if neither its name nor its content is that of a Parquet file."""
    try:
        if not named:
            with filesystem.open_input_stream(path) as file:
                if file.read(len(MAGIC)) != MAGIC:
                    return None
        fragment = FORMAT.make_fragment(path, filesystem)
        _ = fragment.physical_schema
    except FileNotFoundError:
        raise UnreadableSource(source, f"{path} disappeared while it was read: run again.") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UnreadableSource(
            source,
            f"{path} is not a Parquet file that can be read ({first_line(error)}). Write it again, or give it a name "
            "that begins with _ to leave it out.",
        ) from error
    return SourceFile(path, fragment, partition)
