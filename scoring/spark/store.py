"""Extends Feast's Spark offline store to views over parquet files, so that both batch engines use the same definitions.

Feast's store supports only SparkSource and IcebergSource (0.67). This store also accepts a FileSource of parquet files,
as a Spark view of the files. Everything else is Feast's, above all the point-in-time join.
"""

import copy
import uuid
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from feast.data_format import DeltaFormat
from feast.feature_view import FeatureView
from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
    SparkOfflineStore,
    SparkOfflineStoreConfig,
    get_spark_session_or_start_new_with_repoconfig,
)
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from pyarrow.fs import FileSystem, FileType, LocalFileSystem
from pyspark.sql import functions as sf

from scoring.errors import UnreadableSource

if TYPE_CHECKING:
    from feast import FeatureStore
    from pyspark.sql import Column, DataFrame, SparkSession


class ParquetSparkOfflineStoreConfig(SparkOfflineStoreConfig):
    """The offline_store section of feature_store.yaml: the options of Feast's Spark store."""

    type: str = "scoring.spark.store.ParquetSparkOfflineStore"


class ParquetSparkOfflineStore(SparkOfflineStore):
    """Implements the store that the module describes."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: "pd.DataFrame | str | DataFrame | None",
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Return the point-in-time join, which runs lazily. Errors are those of Feast's own store."""
        spark = get_spark_session_or_start_new_with_repoconfig(config.offline_store)
        views = [_on_spark(spark, view, config) for view in feature_views]
        return SparkOfflineStore.get_historical_features(
            config,
            views,
            feature_refs,
            entity_df,
            registry,
            project,
            full_feature_names,
            filter_by_created_timestamp,
            **kwargs,
        )


def on_spark(store: "FeatureStore") -> "FeatureStore":
    """Return the same definitions with a Spark offline store: the configured one, or else the one above."""
    from feast import FeatureStore

    if isinstance(store.config.offline_store, SparkOfflineStoreConfig):
        return store
    config = copy.copy(store.config)
    config.offline_config = {"type": ParquetSparkOfflineStoreConfig().type}
    config._offline_store = None
    return FeatureStore(repo_path=str(store.repo_path), config=config)


def _on_spark(spark: "SparkSession", view: FeatureView, config: RepoConfig) -> FeatureView:
    source = view.batch_source
    if not isinstance(source, FileSource):
        return view
    table = f"serving_{uuid.uuid4().hex}"
    _read(spark, source, config).createOrReplaceTempView(table)
    changed = copy.copy(view)
    changed.batch_source = SparkSource(
        name=source.name,
        table=table,
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        field_mapping=source.field_mapping,
    )
    return changed


def _read(spark: "SparkSession", source: FileSource, config: RepoConfig) -> "DataFrame":
    uri = FileSource.get_uri_for_file_path(repo_path=config.repo_path, uri=source.file_options.uri)
    filesystem, path = FileSource.create_filesystem_and_path(
        uri, source.file_options.s3_endpoint_override, source.resolve_credentials()
    )
    if isinstance(source.file_format, DeltaFormat) or _has_delta_log(filesystem or LocalFileSystem(), path):
        raise UnreadableSource(uri, "it is a Delta table, which the Spark engine does not read: use the local engine.")
    schema = ds.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive").schema
    rows = spark.read.parquet(uri if filesystem is not None else path)
    for field in schema:
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            rows = rows.withColumn(field.name, _from_nanoseconds(sf.col(f"`{field.name}`")))
    reverse = {new: old for old, new in source.field_mapping.items()}
    created = reverse.get(source.created_timestamp_column, source.created_timestamp_column)
    if created:
        # Feast's query loses rows without a created timestamp, because its join on the latest one compares nulls.
        earliest = sf.lit("0001-01-01 00:00:00").cast(rows.schema[created].dataType)
        rows = rows.withColumn(created, sf.coalesce(sf.col(f"`{created}`"), earliest))
    return rows


def _has_delta_log(filesystem: FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(f"{path.rstrip('/')}/_delta_log").type == FileType.Directory)


def _from_nanoseconds(column: "Column") -> "Column":
    return sf.timestamp_micros(sf.call_function("div", column, sf.lit(1000)))
