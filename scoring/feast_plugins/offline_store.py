"""A Feast offline store on DuckDB's ASOF JOIN, faster than Feast's duckdb store, in bounded memory and in row order.

Name it in feature_store.yaml (Feast's own extension point):

    offline_store:
      type: scoring.feast_plugins.offline_store.AsofOfflineStore
      memory_limit: 1GB

It returns the same results as Feast's duckdb store, except that rows keep the request's order and relative paths start
at the feature repository instead of the working directory. It delegates what it does not support (sources other than
parquet files and Delta tables, a cutoff by created timestamp, substrait views) to Feast's own store.
"""

from datetime import datetime
from typing import TypeGuard

import duckdb
import pandas as pd
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.utils import compute_non_entity_date_range

from scoring.feast_plugins.offline_query import AsofRetrievalJob
from scoring.feast_plugins.offline_sql import Join
from scoring.feast_plugins.source_columns import declared_types
from scoring.feast_plugins.source_query import SourceRetrievalJob


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Options under offline_store in feature_store.yaml, in addition to those of Feast's duckdb store."""

    type: str = "scoring.feast_plugins.offline_store.AsofOfflineStore"

    memory_limit: str = "1GB"
    """Memory that a join may use before it spills to disk, in DuckDB syntax."""

    temp_directory: str | None = None
    """Folder to spill to. By default, a temporary folder that is removed afterwards."""


class AsofOfflineStore(DuckDBOfflineStore):
    """Implements the store that the module describes."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return the point-in-time join, which runs when its result is read.

        Without entity rows, the entities are those with a row between the two dates (inclusive) that is within its time
        to live at `end_date`. Each appears once, with its features as of `end_date`.

        Args:
            config: the configuration of the feature store.
            feature_views: views with their projections.
            feature_refs: `view:feature` of all requested features.
            entity_df: entity rows with an event timestamp: a frame, or a DuckDB query whose row order counts. None for
                all entities.
            registry: the Feast registry, for the on-demand views among the references.
            project: the Feast project.
            full_feature_names: whether columns are named `view__feature`.
            filter_by_created_timestamp: whether rows created after the entity row's timestamp are ignored.
            start_date: without entity rows, the earliest event timestamp; by default, the longest time to live, or else
                30 days, before `end_date`. A time without a zone is UTC.
            end_date: without entity rows, the time as of which features are joined; by default, now.

        Raises:
            ValueError: all entities are asked for, but no view has all join keys, or Feast's own store would join.
        """
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        supported = all(is_readable(view.batch_source) for view in feature_views)
        if filter_by_created_timestamp or not supported or any(view.mode == "substrait" for view in on_demand):
            if entity_df is None:
                raise ValueError("Feast's duckdb store, which joins these views, needs entity rows")
            rows = duckdb.execute(entity_df).df() if isinstance(entity_df, str) else entity_df
            options = (full_feature_names, filter_by_created_timestamp)
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, rows, registry, project, *options
            )
        joins = [join_of(view, feature_refs, full_feature_names) for view in feature_views]
        entities = (
            compute_non_entity_date_range(feature_views, start_date, end_date) if entity_df is None else entity_df
        )
        return AsofRetrievalJob(config, entities, joins, feature_refs, on_demand, full_feature_names)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return a job for the latest row of each key between two timestamps (inclusive), with the source's names."""
        names = (join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        if not is_readable(data_source):
            return DuckDBOfflineStore.pull_latest_from_table_or_query(config, data_source, *names, start_date, end_date)
        return SourceRetrievalJob(config, data_source, *names, between=(start_date, end_date), latest=True)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return a job for all rows between two timestamps (both inclusive), with the source's names."""
        names = (join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        if not is_readable(data_source):
            return DuckDBOfflineStore.pull_all_from_table_or_query(config, data_source, *names, start_date, end_date)
        return SourceRetrievalJob(config, data_source, *names, between=(start_date, end_date), latest=False)


def is_readable(source: DataSource | None) -> TypeGuard[FileSource]:
    """Return whether this project's queries can read a source: Parquet files or a Delta table."""
    return isinstance(source, FileSource) and (
        isinstance(source.file_format, ParquetFormat | DeltaFormat) or source.file_format is None
    )


def join_of(view: FeatureView, feature_refs: list[str], full_feature_names: bool) -> Join:
    """Return the join of a readable view with those of the features `view:feature` that are its own."""
    prefix = f"{view.projection.name_to_use()}:"
    names = [reference.removeprefix(prefix) for reference in feature_refs if reference.startswith(prefix)]
    name = view.projection.name_alias or view.name
    source, map_key = view.batch_source, view.projection.join_key_map
    assert isinstance(source, FileSource)  # noqa: S101 - as is_readable found; for the type checker
    return Join(
        view=name,
        source=source,
        keys={key.name: map_key.get(key.name, key.name) for key in view.entity_columns if key.name != DUMMY_ENTITY_ID},
        features={feature: f"{name}__{feature}" if full_feature_names else feature for feature in names},
        ttl=view.ttl or None,
        types=declared_types(view, source),
    )
