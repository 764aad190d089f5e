"""The point-in-time join of a batch request on Spark: a sort within each entity, then its latest feature row so far.

Feature rows and request rows of an entity are sorted together by time, and the last feature row is carried forward to
the request rows after it. The cost grows linearly with the rows. Views with the same join keys share one shuffle.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as sf

from scoring.batch.join import lost_rows_error
from scoring.errors import FeatureStoreError
from scoring.features.on_demand_views import on_demand_views
from scoring.spark.sources import SPARK_TYPES, ViewRows, read_view
from scoring.spark.tasks import (
    CREATED,
    FRESH,
    ROW,
    STALE,
    TIME,
    WRITTEN,
    ReadEntityRows,
    WriteInputParts,
    Written,
    key_names,
    read_written,
    view_names,
)

if TYPE_CHECKING:
    from feast import FeatureStore

KIND = "kind"


def write_joined_parts(
    spark: SparkSession, store: "FeatureStore", write: WriteInputParts, latest_us: int
) -> list[Written]:
    """Join a request's rows with the model's features and write them in parts. Return the parts.

    Args:
        spark: the session.
        store: the Feast store.
        write: the rows, the features, and the destination.
        latest_us: the latest event timestamp of the rows, in microseconds since 1970.

    Raises:
        FeatureStoreError: a source can't be read, or rows were lost. Errors of Spark are not translated.
    """
    features, rows = write.features, write.rows
    if rows == 0:
        return [write.write(0)]
    parts = -(-rows // write.rows_per_part)
    keys = key_names(features)
    read = ReadEntityRows(write.request, keys, write.rows_per_part)
    types = [f"{keys[key.name]} {SPARK_TYPES[key.dtype]}" for key in features.join_keys]
    schema = ", ".join([*types, f"{TIME} bigint", f"{ROW} bigint"])
    entity_rows = spark.range(parts, numPartitions=parts).mapInArrow(read, schema)
    views = [read_view(spark, store, features, names, latest_us) for names in view_names(features)]
    # Each task gets one part, in order.
    part = sf.floor(sf.col(ROW) / write.rows_per_part).cast("int")
    result = _joined(entity_rows, views).drop(*keys.values(), TIME)
    placed = result.repartitionById(parts, part).sortWithinPartitions(ROW)
    write = msgspec.structs.replace(write, on_demand=on_demand_views(features))
    try:
        written = read_written(placed.mapInArrow(write, WRITTEN).collect())
    except Exception as error:
        if failure := _failure(views, error):
            raise failure from error
        raise
    found = sum(each.rows for each in written)
    if found != rows or len(written) != parts:
        raise lost_rows_error(store, features, rows, found)
    return written


def _joined(rows: DataFrame, views: Sequence[ViewRows]) -> DataFrame:
    """Return the rows with the columns that `WriteInputParts` reads."""
    same_keys: dict[frozenset[str], list[ViewRows]] = {}
    for view in views:
        same_keys.setdefault(frozenset(view.names.keys), []).append(view)
    for keys, some in same_keys.items():
        rows = _with_latest(rows, sorted(keys), some)
    return rows


def _with_latest(rows: DataFrame, keys: Sequence[str], views: Sequence[ViewRows]) -> DataFrame:
    """Return the rows with, for each view, its state and the features of its latest row up to their time."""
    columns = rows.columns
    together = rows.withColumns({KIND: sf.lit(len(views)), CREATED: sf.lit(None).cast("bigint")})
    # Of rows with the same time, the one created last counts, then the one with the smallest values, as in DuckDB.
    order = [sf.col(TIME), sf.col(KIND), sf.col(CREATED).asc_nulls_first()]
    for kind, (_, names, frame, _) in enumerate(views):
        row = sf.struct(TIME, *names.features).alias(names.view)
        own = frame.select(*keys, TIME, CREATED, sf.lit(kind).alias(KIND), row)
        together = together.unionByName(own, allowMissingColumns=True)
        types = {field.name: field.dataType.simpleString() for field in frame.schema}
        sortable = [name for name in names.features if "map<" not in types[name]]
        order += [sf.col(f"{names.view}.{name}").desc_nulls_first() for name in sortable]
    window = Window.partitionBy(*keys).orderBy(*order).rowsBetween(Window.unboundedPreceding, Window.currentRow)
    latest = {view: sf.last(view, ignorenulls=True).over(window) for view in (view.names.view for view in views)}
    joined = together.withColumns(latest).where(sf.col(KIND) == len(views))
    added = []
    for view, names, _, _ in views:
        time = sf.col(f"{names.view}.{TIME}")
        is_fresh = time.isNotNull() if view.ttl_s is None else time + round(view.ttl_s * 1e6) >= sf.col(TIME)
        added.append(sf.when(is_fresh, FRESH).when(time.isNotNull(), STALE).cast("byte").alias(names.state))
        added += [sf.when(is_fresh, sf.col(f"{names.view}.{name}")).alias(name) for name in names.features]
    return joined.select(*columns, *added)


def _failure(views: Sequence[ViewRows], error: Exception) -> FeatureStoreError | None:
    """Return the error that names the file and the column that an executor could not read."""
    if not any(module in str(error) for module in ("duckdb.", "pyarrow.", "OSError")):
        return None
    relations = (view.relation for view in views if view.relation is not None)
    return next(filter(None, (relation.failure() for relation in relations)), None)
