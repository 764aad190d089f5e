"""Reads the rows of feature views as Spark frames, with the values and types that the local engine reads.

Parquet files and Delta tables are read by the local engine's own queries, on the executors, through Arrow. Spark itself
reads the tables, queries and files of Feast's SparkSource.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import duckdb
from pyspark.sql import functions as sf
from pyspark.sql.pandas.types import from_arrow_schema

from scoring.errors import FeatureStoreError
from scoring.feast_plugins.join_keys import NO_ENTITY, JoinKey
from scoring.feast_plugins.offline_sql import Join, quote, timestamp
from scoring.feast_plugins.offline_store import is_readable
from scoring.feast_plugins.source_columns import Column, declared_types, expression
from scoring.feast_plugins.source_reading import SourceRelation
from scoring.features.model_features import ModelFeatures, View
from scoring.spark.tasks import CREATED, TIME, ReadFeatures, ViewNames

if TYPE_CHECKING:
    from feast import FeatureStore
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame, SparkSession

ROWS_PER_TASK = 1_000_000
SPARK_TYPES = {"int32": "int", "int64": "bigint", "string": "string"}


class ViewRows(NamedTuple):
    """The rows of a feature view."""

    view: View
    names: ViewNames
    frame: "DataFrame"
    """The view's join keys, TIME, CREATED and its features."""
    relation: SourceRelation | None = None
    """The view's files; None if Spark reads its source."""


def read_view(
    spark: "SparkSession", store: "FeatureStore", features: ModelFeatures, names: ViewNames, latest_us: int
) -> ViewRows:
    """Return the rows of one of the model's views up to a time, in microseconds since 1970. They are read lazily.

    Raises:
        FeatureStoreError: the source can't be read, or is of another kind. Errors of Spark are not translated.
    """
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    view = features.views[names.place]
    feast_view = features.feast.views[view.name]
    source = feast_view.batch_source
    own = {name: key.name for name, key in view.keys if name != NO_ENTITY}
    of_request = {key.name: key for key in features.join_keys}
    join = Join(
        view=view.name,
        source=source,
        keys=dict(zip(own, names.keys, strict=True)),
        features=dict(zip((column.partition(":")[2] for column in view.columns), names.features, strict=True)),
        ttl=None,
        types=declared_types(feast_view, source),
    )
    keys = {name: of_request[key] for name, key in own.items()}
    relation = None
    if isinstance(source, SparkSource):
        frame = _frame_of_table(spark, source.get_table_query_string(), join, keys)
        frame = frame.where(sf.col(TIME) <= latest_us)
    elif is_readable(source):
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            relation = SourceRelation(connection, "source", source, Path(store.repo_path), join.columns())
            frame = _frame_of_files(spark, connection, relation, join, keys, latest_us)
    else:
        doing, kind = f"joining features of service {features.service!r}", type(source).__name__
        raise FeatureStoreError(doing, f"view {view.name!r} has a {kind}, which the Spark engine does not read")
    return ViewRows(view, names, frame, relation)


def _frame_of_files(
    spark: "SparkSession",
    connection: duckdb.DuckDBPyConnection,
    relation: SourceRelation,
    join: Join,
    keys: dict[str, JoinKey],
    latest_us: int,
) -> "DataFrame":
    found = connection.sql("SELECT * FROM source LIMIT 0").to_arrow_table().schema
    selected = []
    for name, renamed in join.keys.items():
        # As the view declares it, then as the request's key, which another view may declare otherwise.
        column = Column(join.original(name), "key", _feast_type(keys[name]))
        read = expression(column, found.field(column.name).type, quote(column.name))
        selected.append(f"{read.value} AS {renamed}")
    created = join.source.created_timestamp_column
    selected += [
        f"epoch_us({timestamp(join.original(join.source.timestamp_field))}) AS {TIME}",
        f"{f'epoch_us({timestamp(join.original(created))})' if created else 'CAST(NULL AS BIGINT)'} AS {CREATED}",
        *(f"{quote(join.original(name))} AS {renamed}" for name, renamed in join.features.items()),
    ]
    # A null key matches no entity row.
    conditions = [f"{TIME} <= {latest_us}", *(f"{key} IS NOT NULL" for key in join.keys.values())]

    def query(rows: str) -> str:
        return f"SELECT * FROM (SELECT {', '.join(selected)} FROM ({rows})) WHERE {' AND '.join(conditions)}"

    schema = connection.sql(query("SELECT * FROM source LIMIT 0")).to_arrow_table().schema
    pieces = [(query(rows), *files) for rows, *files in relation.pieces(ROWS_PER_TASK)]
    read_features = ReadFeatures(tuple(pieces))
    numbers = spark.range(len(pieces), numPartitions=max(len(pieces), 1))
    return numbers.mapInArrow(read_features, from_arrow_schema(schema))


def _frame_of_table(spark: "SparkSession", table: str, join: Join, keys: dict[str, JoinKey]) -> "DataFrame":
    def column(name: str) -> "SparkColumn":
        escaped = join.original(name).replace("`", "``")
        return sf.col(f"`{escaped}`")

    def time(name: str) -> "SparkColumn":
        return sf.unix_micros(column(name).cast("timestamp"))

    created = join.source.created_timestamp_column
    return spark.sql(f"SELECT * FROM {table}").select(
        *(column(name).try_cast(SPARK_TYPES[keys[name].dtype]).alias(key) for name, key in join.keys.items()),
        time(join.source.timestamp_field).alias(TIME),
        (time(created) if created else sf.lit(None).cast("bigint")).alias(CREATED),
        *(column(name).alias(renamed) for name, renamed in join.features.items()),
    )


def _feast_type(key: JoinKey) -> object:
    from feast.types import Int32, Int64, String

    return {"int32": Int32, "int64": Int64, "string": String}[key.dtype]
