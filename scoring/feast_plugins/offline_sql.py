"""The SQL of a point-in-time join over one source, in DuckDB's dialect."""

import re
from datetime import timedelta
from pathlib import Path

import duckdb
import msgspec
import pyarrow.dataset as ds
from feast.infra.offline_stores.file_source import FileSource


class SourceColumnMissing(ValueError):
    """The source of a feature view lacks a column that the view names."""

    def __init__(self, view: str, column: str, found: list[str]) -> None:
        super().__init__(f"the source of view {view!r} has no column {column!r}; it has {', '.join(found)}")


class Join(msgspec.Struct, frozen=True):
    """How one feature view joins: names in the source and in the entity rows."""

    view: str
    """Its name in the result's columns."""
    source: FileSource
    keys: dict[str, str]
    """The source's key column → the entity rows'."""
    features: dict[str, str]
    """The source's feature column → its name in the result."""
    ttl: timedelta | None

    def alias(self, feature: str) -> str:
        """A feature's name inside the join: the source's names may differ in case alone, or be names of the query."""
        return f"feature {list(self.features).index(feature)}"

    def original(self, column: str) -> str:
        """The name that a column has in the file, before Feast's field mapping."""
        return next((old for old, new in self.source.field_mapping.items() if new == column), column)


def register_source(connection: duckdb.DuckDBPyConnection, name: str, source: FileSource, repo: Path | None) -> None:
    """Make `name` a relation over the source's files; relative paths start at the feature repository `repo`."""
    uri = FileSource.get_uri_for_file_path(repo_path=repo, uri=source.file_options.uri)
    filesystem, path = FileSource.create_filesystem_and_path(
        uri, source.file_options.s3_endpoint_override, source.resolve_credentials()
    )
    if filesystem is None:
        pattern = f"{path.rstrip('/')}/**/*.parquet" if Path(path).is_dir() else path
        literal = pattern.replace("'", "''")
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{literal}')")
    else:
        connection.register(name, ds.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive"))


def asof(source: str, alias: str, join: Join, event: str) -> str:
    """The ASOF clause: for each entity row, the source's latest row up to its timestamp `event`."""
    time = timestamp(join.original(join.source.timestamp_field))
    columns = [f"{time} AS feature_time"]
    columns += [f"{quote(join.original(column))} AS {quote('key ' + column)}" for column in join.keys]
    columns += [f"{quote(join.original(column))} AS {quote(join.alias(column))}" for column in join.features]
    # Only rows that some entity row could see, so that a long history is not sorted for a short request.
    latest = f"(SELECT max({timestamp(event)}) FROM entities)"
    query = f"SELECT {', '.join(columns)} FROM {source} WHERE {time} <= {latest}"
    created = join.source.created_timestamp_column
    if created:
        same = ", ".join([*(quote(join.original(column)) for column in join.keys), time])
        # Of rows that differ in their features alone, always the same one.
        features = (quote(join.original(column)) for column in join.features)
        order = ", ".join([f"{timestamp(join.original(created))} DESC NULLS LAST", *features])
        query += f" QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY {order}) = 1"
    on = [f"e.{quote(entity)} = {alias}.{quote('key ' + column)}" for column, entity in join.keys.items()]
    on.append(f"CAST(e.{quote(event)} AS TIMESTAMPTZ) >= {alias}.feature_time")
    return f"ASOF LEFT JOIN ({query}) AS {alias} ON {' AND '.join(on)}"


def value(alias: str, join: Join, feature: str, event: str) -> str:
    """A feature of a joined source under its name in the result: null where its row is past the time to live."""
    value = f"{alias}.{quote(join.alias(feature))}"
    if join.ttl:
        value = f"CASE WHEN {is_fresh(alias, join.ttl, event)} THEN {value} END"
    return f"{value} AS {quote(join.features[feature])}"


def check_columns(connection: duckdb.DuckDBPyConnection, relation: str, join: Join) -> None:
    """Raise unless a relation has all columns of the join, with the same upper and lower case.

    Raises:
        SourceColumnMissing: it lacks one. DuckDB would take a column that differs in case alone.
    """
    found = [str(name) for name, *_ in connection.execute(f"DESCRIBE {relation}").fetchall()]
    created = join.source.created_timestamp_column
    named = [*join.keys, *join.features, join.source.timestamp_field, *([created] if created else [])]
    for column in map(join.original, named):
        if column not in found:
            raise SourceColumnMissing(join.view, column, found)


def is_fresh(alias: str, ttl: timedelta, event: str) -> str:
    """Whether a joined row is within its time to live at the entity row's `event`; null where none was joined."""
    expiry = f"{alias}.feature_time + INTERVAL {ttl // timedelta(microseconds=1)} MICROSECONDS"
    return f"{expiry} >= CAST(e.{quote(event)} AS TIMESTAMPTZ)"


def is_found(alias: str, ttl: timedelta | None, event: str) -> str:
    """Whether a row was joined that is within its time to live."""
    return f"coalesce({is_fresh(alias, ttl, event)}, false)" if ttl else f"{alias}.feature_time IS NOT NULL"


def stale_mark(view: str) -> str:
    """Name of the column that marks rows whose row of the view was past its time to live."""
    return f"{view} is stale"


def found_mark(view: str) -> str:
    """Name of the column that marks rows for which the view has a row."""
    return f"{view} is found"


def timestamp(column: str) -> str:
    """A column of timestamps in microseconds with a zone, whichever type the file has."""
    # DuckDB can't compare its nanosecond type with the others (2.0).
    return f"CAST({quote(column)} AS TIMESTAMPTZ)"


def parquet_file(file: Path) -> str:
    """The rows of exactly this file: its path is not a pattern, and no columns come from it."""
    literal = re.sub(r"([*?\[])", r"[\1]", str(file)).replace("'", "''")
    return f"read_parquet('{literal}', hive_partitioning = false)"


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
