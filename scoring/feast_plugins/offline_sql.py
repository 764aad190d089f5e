"""Builds the SQL of a point-in-time join over one source, in DuckDB's dialect."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource

from scoring.feast_plugins.source_columns import Column, NoConversion, expression, read_columns


class Join(msgspec.Struct, frozen=True):
    """The names that the join of one feature view uses in the source and in the entity rows."""

    view: str
    """Its name in the feature service."""
    source: FileSource
    keys: dict[str, str]
    """The source's key column → the entity rows'."""
    features: dict[str, str]
    """The source's feature column → its name in Feast's result."""
    ttl: timedelta | None
    types: dict[str, Any] = {}
    """Column in the source's files → Feast's type, as the view declares it."""

    def columns(self) -> list[Column]:
        """Return the columns that the join reads from the source's files."""
        return read_columns(
            map(self.original, self.keys),
            map(self.original, self.features),
            self.original(self.source.timestamp_field),
            self.original(self.source.created_timestamp_column or ""),
            self.types,
        )

    def alias(self, feature: str) -> str:
        """Return a feature's alias in the join.

        The source's names may differ only in case or clash with names in the query.
        """
        return f"feature {list(self.features).index(feature)}"

    def original(self, column: str) -> str:
        """Return the name that a column has in the file, before Feast's field mapping."""
        return next((old for old, new in self.source.field_mapping.items() if new == column), column)


def asof(source: str, alias: str, join: Join, entities: pa.Schema, event: str) -> str:
    """Return the ASOF clause that finds, for each entity row, the source's latest row up to its timestamp `event`.

    Raises:
        ValueError: a key of the entity rows has a type that the view's key can't have.
    """
    time = timestamp(join.original(join.source.timestamp_field))
    columns = [f"{time} AS feature_time"]
    columns += [f"{quote(join.original(column))} AS {quote('key ' + column)}" for column in join.keys]
    columns += [f"{quote(join.original(column))} AS {quote(join.alias(column))}" for column in join.features]
    # Restrict to rows that some entity row can see, so that a long history is not sorted for a short request.
    latest = f"(SELECT max({timestamp(event)}) FROM entities)"
    query = f"SELECT {', '.join(columns)} FROM {source} WHERE {time} <= {latest}"
    created = join.source.created_timestamp_column
    if created:
        same = ", ".join([*(quote(join.original(column)) for column in join.keys), time])
        # Break ties deterministically.
        features = (quote(join.original(column)) for column in join.features)
        order = ", ".join([f"{timestamp(join.original(created))} DESC NULLS LAST", *features])
        query += f" QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY {order}) = 1"
    on = [f"{_entity_key(join, *key, entities)} = {alias}.{quote('key ' + key[0])}" for key in join.keys.items()]
    on.append(f"CAST(e.{quote(event)} AS TIMESTAMPTZ) >= {alias}.feature_time")
    return f"ASOF LEFT JOIN ({query}) AS {alias} ON {' AND '.join(on)}"


def entities_of(source: str, join: Join, start: datetime, end: datetime) -> str:
    """Return a query for the keys of entities that have a row since `start` within its time to live at `end`.

    The keys have the entity rows' names, sorted, and may appear several times.
    """
    if join.ttl and join.ttl < end - start:
        start = end - join.ttl
    keys = {entity: quote(join.original(column)) for column, entity in join.keys.items()}
    selected = ", ".join(f"{keys[entity]} AS {quote(entity)}" for entity in sorted(keys))
    time = timestamp(join.original(join.source.timestamp_field))
    conditions = [f"{time} BETWEEN TIMESTAMPTZ '{start.isoformat()}' AND TIMESTAMPTZ '{end.isoformat()}'"]
    conditions += [f"{key} IS NOT NULL" for key in keys.values()]
    return f"SELECT {selected} FROM {source} WHERE {' AND '.join(conditions)}"


def _entity_key(join: Join, column: str, entity: str, entities: pa.Schema) -> str:
    declared, found = join.types.get(join.original(column)), entities.field(entity).type
    try:
        return expression(Column(entity, "key", declared), found, f"e.{quote(entity)}").value
    except NoConversion:
        raise ValueError(f"entity rows: column {entity!r} holds {found}, and the key is declared {declared}") from None


def value(alias: str, join: Join, feature: str, event: str) -> str:
    """Return the expression of a feature of a joined source; null if its row is past the time to live."""
    value = f"{alias}.{quote(join.alias(feature))}"
    return f"CASE WHEN {is_fresh(alias, join.ttl, event)} THEN {value} END" if join.ttl else value


def is_fresh(alias: str, ttl: timedelta, event: str) -> str:
    """Return the condition that a joined row is within its time to live at `event`; null if no row was joined."""
    expiry = f"{alias}.feature_time + INTERVAL {ttl // timedelta(microseconds=1)} MICROSECONDS"
    return f"{expiry} >= CAST(e.{quote(event)} AS TIMESTAMPTZ)"


def is_found(alias: str, ttl: timedelta | None, event: str) -> str:
    """Return the condition that a row was joined and is within its time to live."""
    return f"coalesce({is_fresh(alias, ttl, event)}, false)" if ttl else f"{alias}.feature_time IS NOT NULL"


def stale_mark(view: str) -> str:
    """Return the name of the column that marks entity rows whose row of the view was past its time to live."""
    return f"{view} is stale"


def found_mark(view: str) -> str:
    """Return the name of the column that marks entity rows for which the view has a row."""
    return f"{view} is found"


def timestamp(column: str) -> str:
    """Return a column as timestamps in microseconds with a zone, for any type in the file."""
    # DuckDB can't compare its nanosecond type with the others (2.0).
    return f"CAST({quote(column)} AS TIMESTAMPTZ)"


def parquet_files(files: Sequence[str]) -> str:
    """Return a relation of exactly these local files. Paths are neither patterns nor a source of columns."""
    escaped = [literal(re.sub(r"([*?\[])", r"[\1]", file)) for file in files]
    return f"read_parquet([{', '.join(escaped)}], hive_partitioning = false)"


def literal(text: str) -> str:
    """Quote a string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quote(name: str) -> str:
    """Quote a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
