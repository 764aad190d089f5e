"""The point-in-time join of a batch request by Feast's own Spark store, with the result restored to row order."""

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as sf

from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.batch.join import features_of_none, lost_rows
from scoring.feast_plugins.join_keys import ROW
from scoring.features.model_features import ModelFeatures
from scoring.features.on_demand_views import on_demand_views
from scoring.imports import inside
from scoring.spark.store import on_spark
from scoring.spark.tasks import WRITTEN, ReadEntityRows, WriteInputParts, Written, read_written

if TYPE_CHECKING:
    from feast import FeatureStore

SPARK_TYPES = {"int32": "int", "int64": "bigint", "string": "string"}


def write_joined_parts(spark: SparkSession, store: "FeatureStore", write: WriteInputParts) -> list[Written]:
    """Join a request's rows with the model's features and write them in parts. Return the parts.

    Args:
        spark: the session.
        store: the Feast store, with its own Spark offline store or with views over parquet files.
        write: the rows, the features, and the destination.

    Raises:
        FeatureStoreError: rows were lost. Errors of Feast and Spark are not translated.
    """
    features, rows = write.features, write.rows
    if rows == 0:
        return [write.write(0, [features_of_none(features).append_column(ROW, pa.nulls(0, pa.int64()))])]
    store = on_spark(store)
    parts = -(-rows // write.rows_per_part)
    keys = tuple(key.name for key in features.join_keys)
    read = ReadEntityRows(write.request, (*keys, EVENT_TIMESTAMP), write.rows_per_part)
    types = [f"`{key.name}` {SPARK_TYPES[key.dtype]}" for key in features.join_keys]
    schema = ", ".join([*types, f"`{EVENT_TIMESTAMP}` timestamp_ntz", f"`{ROW}` bigint"])
    # Persisted, because Feast reads them once each for the first and the last time, and several times in its query.
    entity_rows = spark.range(parts, numPartitions=parts).mapInArrow(read, schema).persist()
    try:
        results = [_joined(store, features, some) for some in _unambiguous(entity_rows, features)]
        result = functools.reduce(DataFrame.unionByName, results)
        # Each task gets whole parts, in order. If Feast returns a row several times, the smallest values come first.
        part = sf.floor(sf.col(ROW) / write.rows_per_part).cast("int")
        placed = result.repartitionById(parts, part).sortWithinPartitions(ROW, *result.columns)
        write = msgspec.structs.replace(write, on_demand=on_demand_views(features))
        written = read_written(placed.mapInArrow(write, WRITTEN).collect())
    finally:
        entity_rows.unpersist()
    found = sum(each.rows for each in written)
    if found != rows or len(written) != parts:
        raise lost_rows(store, features, rows, found)
    return written


def _joined(store: "FeatureStore", features: ModelFeatures, entity_rows: DataFrame) -> DataFrame:
    """Return Feast's features as `view:feature`, with row numbers, without on-demand features."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkRetrievalJob

    with inside(Path(store.repo_path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # each call warns that Feast's Spark store is experimental
        job = store.get_historical_features(entity_rows, features.feast.service, full_feature_names=True)
    assert isinstance(job, SparkRetrievalJob)  # noqa: S101 - for the type checker: on_spark ensures it
    frame = job.to_spark_df()
    own = {key.name for key in features.join_keys} | {EVENT_TIMESTAMP}
    names = {name: column for column, name in features.feast_names.items()}
    found = [name for name in frame.columns if name not in own]
    return frame.select(*[sf.col(f"`{name}`").alias(names.get(name, name)) for name in found])


def _unambiguous(entity_rows: DataFrame, features: ModelFeatures) -> Iterator[DataFrame]:
    """Yield the rows in as few frames as possible such that Feast's query can distinguish all keys in a frame.

    The query identifies a row by its keys as strings, joined without a separator (feast 0.67), so that customer 1 of
    merchant 12 is the same as customer 11 of merchant 2. A single key is unambiguous.
    """
    composite = sorted(keys for keys in features.joined_keys if len(keys) > 1)
    if not composite:
        yield entity_rows
        return
    ranks = []
    for i, keys in enumerate(composite):
        text = sf.concat(*[sf.col(f"`{key}`").cast("string") for key in keys])
        order = [sf.col(f"`{key}`") for key in keys]
        ranks.append(f"rank_{i}__")
        entity_rows = entity_rows.withColumn(ranks[-1], sf.dense_rank().over(Window.partitionBy(text).orderBy(*order)))
    for found in entity_rows.select(*ranks).distinct().orderBy(*ranks).collect():
        same = functools.reduce(lambda a, b: a & b, (sf.col(rank) == found[rank] for rank in ranks))
        yield entity_rows.where(same).drop(*ranks)
