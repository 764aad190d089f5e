"""Registers a feature source as a DuckDB relation, in which each column has the type that its view declares."""

import functools
import logging
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
from feast.infra.offline_stores.file_source import FileSource

from scoring.errors import FeatureStoreError, UnreadableSource
from scoring.feast_plugins.offline_sql import literal, parquet_files, quote
from scoring.feast_plugins.source_columns import (
    MAX_DECIMAL_DIGITS,
    Column,
    Expression,
    NoConversion,
    common_type,
    expression,
    have_common_type,
    sql_type,
)
from scoring.feast_plugins.source_files import FORMAT, SourceFile, source_files

logger = logging.getLogger(__name__)

BAD_VALUE = "a value of a feature source can't be read as declared"


class _Group(msgspec.Struct, frozen=True):
    """Files that are read with the same expressions."""

    files: list[SourceFile]
    columns: list[tuple[Column, Expression]]


class SourceRelation:
    """One source that is registered on a connection under a name."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        source: FileSource,
        repo: Path | None,
        columns: Sequence[Column],
    ) -> None:
        """Create the relation `name` with these columns, under their names in the files.

        Args:
            connection: the connection to register on.
            name: name of the relation.
            source: the source.
            repo: the feature repository, at which relative paths start.
            columns: each name once.

        Raises:
            UnreadableSource: a file is missing or damaged, or a column is missing or can't be read as declared.
        """
        self._name = source.file_options.uri
        self._columns = list({column.name: column for column in reversed(columns)}.values())
        files = source_files(source, repo)
        self._check(files)
        self._groups = list(self._grouped(files))
        branches = [
            f"SELECT {', '.join(_selected(*each) for each in group.columns)} FROM "
            f"{_relation(connection, f'{name} {place}', group.files, self._columns)}"
            for place, group in enumerate(self._groups)
        ]
        connection.execute(f"CREATE VIEW {quote(name)} AS {' UNION ALL '.join(branches)}")

    def pieces(self, rows: int) -> Iterator[tuple[str, pa.Schema, list[ds.ParquetFileFragment]]]:
        """Yield queries over the relation `file` and the row groups that it stands for, of about `rows` rows each.

        Together they are the rows of this relation. All can be pickled, and need no Feast.
        """
        for group in self._groups:
            query = f"SELECT {', '.join(_selected(*each) for each in group.columns)} FROM file"
            dataset = _dataset(group.files, self._columns)
            taken, size = [], 0
            for fragment in dataset.get_fragments():
                for part in fragment.split_by_row_group():
                    taken.append(part)
                    size += part.row_groups[0].num_rows
                    if size >= rows:
                        yield query, dataset.schema, taken
                        taken, size = [], 0
            if taken:
                yield query, dataset.schema, taken

    def failure(self) -> UnreadableSource | None:
        """Return why a query over this relation failed, by reading its files one by one; None if all can be read."""
        for group in self._groups:
            for file in group.files:
                with duckdb.connect() as connection:
                    connection.execute("SET TimeZone = 'UTC'")
                    relation = _relation(connection, "file", [file], self._columns)
                    for column, read in group.columns:
                        if problem := self._problem(connection, relation, file, column, read):
                            return problem
        return None

    def _problem(
        self, connection: duckdb.DuckDBPyConnection, relation: str, file: SourceFile, column: Column, read: Expression
    ) -> UnreadableSource | None:
        try:
            if read.bad and connection.execute(f"SELECT 1 FROM {relation} WHERE {read.bad} LIMIT 1").fetchone():
                return self._not_convertible(file, column)
            connection.execute(f"SELECT max(hash({read.value})) FROM {relation}").fetchone()
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            logger.warning("Reading column %r of %s: %s", column.name, file.path, error)
            return UnreadableSource(
                self._name,
                f"column {column.name!r} of {file.path} can't be read: the file is damaged, was replaced while it was "
                "read, or has an unknown encoding. Write it again. The log has details.",
            )
        return None

    def _not_convertible(self, file: SourceFile, column: Column) -> UnreadableSource:
        return UnreadableSource(
            self._name,
            f"column {column.name!r} of {file.path} holds {_found(file, column)} that can't be read as "
            f"{column.type_name}, as its view declares it: correct the file, or the declaration.",
        )

    def _check(self, files: Sequence[SourceFile]) -> None:
        """Raise unless each column is in a file, those that a join needs are in all, and no name is ambiguous."""
        for column in self._columns:
            lacking = [file for file in files if column.name not in (*file.schema.names, *file.partition)]
            if len(lacking) == len(files) or (lacking and column.is_needed):
                raise UnreadableSource(
                    self._name,
                    f"{lacking[0].path} has no column {column.name!r}, and a row can't be joined without it."
                    if len(lacking) < len(files)
                    else f"it has no column {column.name!r}; it has {', '.join(_names(files))}. Correct the files, the "
                    "view, or the source's field_mapping. Names are case-sensitive.",
                )
            for file in lacking:
                if other := [name for name in _names([file]) if name.lower() == column.name.lower()]:
                    raise UnreadableSource(
                        self._name,
                        f"{file.path} has column {other[0]!r}, and other files have {column.name!r}. Names are "
                        "case-sensitive: use the same name in all files.",
                    )
        wanted = {column.name.lower() for column in self._columns}
        for file in files:
            lower = [name.lower() for name in file.schema.names]
            twice = [name for name in file.schema.names if name.lower() in wanted and lower.count(name.lower()) > 1]
            if twice:
                raise UnreadableSource(
                    self._name,
                    f"{file.path} has columns whose names are equal or differ only in case ({', '.join(twice)}): "
                    "rename one of them.",
                )

    def _grouped(self, files: Sequence[SourceFile]) -> Iterator[_Group]:
        groups: dict[Any, list[SourceFile]] = {}
        for file in files:
            groups.setdefault(tuple(_kind(file, column) for column in self._columns), []).append(file)
        for some in groups.values():
            yield _Group(some, [(column, self._expression(column, some[0], groups)) for column in self._columns])

    def _expression(self, column: Column, file: SourceFile, groups: dict[Any, list[SourceFile]]) -> Expression:
        place = self._columns.index(column)
        found, in_path = _kind(file, column)
        try:
            if found is not None:
                read = expression(column, found, quote(column.name))
            elif in_path:
                read = expression(column, pa.string(), quote(column.name), in_path=True)
            else:
                read = expression(column, pa.null(), "NULL")
            if sql_type(column) is None:
                common = common_type([kinds[place][0] or pa.null() for kinds in groups])
                read = Expression(f"CAST({read.value} AS {common})") if common else read
            return read
        except NoConversion:
            if sql_type(column) is not None:
                raise self._not_convertible(file, column) from None
            kinds = [(kinds[place][0], some[0]) for kinds, some in groups.items()]
            other = next((each for kind, each in kinds if not have_common_type(found, kind)), kinds[-1][1])
            raise UnreadableSource(
                self._name,
                f"column {column.name!r} holds {_found(file, column)} in {file.path} and {_found(other, column)} in "
                f"{other.path}: write both files with the same type.",
            ) from None


def translate(error: Exception, relations: Sequence[SourceRelation], memory_limit: str) -> FeatureStoreError:
    """Return the error for a query over these relations, without DuckDB's message, which may quote a value."""
    logger.warning("DuckDB: %s", error)
    doing = "joining or reading feature sources"
    if isinstance(error, duckdb.OutOfMemoryException) or str(error).startswith("Out of Memory Error"):
        remedy = f"it needs more memory than memory_limit allows ({memory_limit}), or more room in temp_directory"
        return FeatureStoreError(doing, f"{remedy}: raise them under offline_store in feature_store.yaml.")
    for relation in relations:
        if failure := relation.failure():
            return failure
    return FeatureStoreError(doing, f"DuckDB raised {type(error).__name__}; the log has its message.")


def _selected(column: Column, read: Expression) -> str:
    value = read.value
    if read.bad:
        value = f"CASE WHEN {read.bad} THEN error({literal(BAD_VALUE)}) ELSE {value} END"
    return f"{value} AS {quote(column.name)}"


def _relation(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[SourceFile], columns: Sequence[Column]
) -> str:
    """Return a relation of files whose columns have the same types. Columns from their paths are strings."""
    in_path = [column.name for column in columns if _kind(files[0], column)[1]]
    if files[0].is_local and not in_path:
        return parquet_files([file.path for file in files])
    # One relation for all values: DuckDB takes a minute to plan a union of a thousand.
    connection.register(name, _dataset(files, columns))
    return quote(name)


def _dataset(files: Sequence[SourceFile], columns: Sequence[Column]) -> ds.FileSystemDataset:
    """Return files whose columns have the same types, with only these columns: DuckDB lacks some of Arrow's types."""
    in_path = [column.name for column in columns if _kind(files[0], column)[1]]
    names = {column.name for column in columns}
    filesystem = files[0].fragment.filesystem
    fields = [field for field in files[0].schema if field.name in names]
    schema = pa.schema([field.with_type(_exported(field.type)) for field in fields])
    for key in in_path:
        schema = schema.append(pa.field(key, pa.string()))
    fragments = [
        FORMAT.make_fragment(file.path, filesystem, _keys(file, in_path)) if in_path else file.fragment
        for file in files
    ]
    return ds.FileSystemDataset(fragments, schema, FORMAT, filesystem)


def _keys(file: SourceFile, names: Sequence[str]) -> ds.Expression:
    """Return an expression from which Arrow takes the file's partition keys."""
    values = [(ds.field(name), file.partition[name]) for name in names]
    return functools.reduce(
        operator.and_, [field.is_null() if value is None else field == value for field, value in values]
    )


def _exported(found: pa.DataType) -> pa.DataType:
    """Return the type that DuckDB gets from Arrow, which has types that DuckDB only reads from files (2.0)."""
    if pa.types.is_float16(found):
        return pa.float32()
    if pa.types.is_decimal256(found) and found.precision <= MAX_DECIMAL_DIGITS:
        return pa.decimal128(found.precision, found.scale)
    return found


def _kind(file: SourceFile, column: Column) -> tuple[pa.DataType | None, bool]:
    """Return the column's type in the file, or else whether its value is in the file's path."""
    if column.name in file.schema.names:
        return file.schema.field(column.name).type, False
    return None, column.name in file.partition


def _found(file: SourceFile, column: Column) -> str:
    found, in_path = _kind(file, column)
    return (
        f"{found} values"
        if found is not None
        else f"{file.partition[column.name]!r} in its path"
        if in_path
        else "nothing"
    )


def _names(files: Sequence[SourceFile]) -> list[str]:
    return list(dict.fromkeys(name for file in files for name in (*file.schema.names, *file.partition)))
