"""The offline store's point-in-time join, and what its queries have in common: DuckDB runs them lazily."""

import contextlib
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pandas as pd
import pyarrow as pa
from feast.errors import FeastEntityDFMissingColumnsError, FeatureNameCollisionError
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig

from scoring.feast_plugins.join_keys import ROW
from scoring.feast_plugins.offline_sql import (
    Join,
    asof,
    entities_of,
    found_mark,
    is_found,
    is_fresh,
    literal,
    quote,
    stale_mark,
    value,
)
from scoring.feast_plugins.source_columns import Column
from scoring.feast_plugins.source_reading import SourceRelation, translate
from scoring.files.atomic import scratch_folder
from scoring.files.parquet import ROWS_PER_BATCH

if TYPE_CHECKING:
    from feast.saved_dataset import SavedDatasetStorage

# Share of the store's memory limit that DuckDB may use for its buffers, because it needs additional memory (2.0).
BUFFER_SHARE = 0.97


class QueryRetrievalJob(RetrievalJob):
    """A DuckDB query that runs when its result is read, within the store's memory limit."""

    full_feature_names = False
    on_demand_feature_views: list[OnDemandFeatureView] = []  # noqa: RUF012 - Feast's property; never changed
    metadata: RetrievalMetadata | None = None

    def __init__(self, config: RepoConfig) -> None:
        """Store the configuration; reading the result runs the query."""
        super().__init__()
        self._config = config
        self._relations: list[SourceRelation] = []

    @abstractmethod
    def _query(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Register the sources on the connection and return the query."""

    def _register(
        self, connection: duckdb.DuckDBPyConnection, name: str, source: FileSource, columns: Sequence[Column]
    ) -> None:
        self._relations.append(SourceRelation(connection, name, source, self._config.repo_path, columns))

    @contextlib.contextmanager
    def _reader(self) -> Iterator[pa.RecordBatchReader]:
        self._relations = []
        options = self._config.offline_store
        with scratch_folder() as spill, duckdb.connect() as connection:
            try:
                connection.execute("SET TimeZone = 'UTC'")
                _limit_memory(connection, options.memory_limit)
                # Absolute, because functions of on-demand views change the working directory meanwhile.
                spill_to = str(Path(options.temp_directory or spill).absolute())
                connection.execute(f"SET temp_directory = {literal(spill_to)}")
                yield connection.sql(self._query(connection)).to_arrow_reader(ROWS_PER_BATCH)
            # OSError: from the stream, DuckDB's errors after the first batch have this type.
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                raise translate(error, self._relations, options.memory_limit) from error

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the result, at most ROWS_PER_BATCH rows at a time, within the memory limit plus one batch.

        Raises:
            FeatureStoreError: a source can't be read, or memory or disk space is exhausted.
        """
        with self._reader() as reader:
            yield from reader

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with self._reader() as reader:
            return reader.read_all()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(
        self, storage: "SavedDatasetStorage", allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Write the result, with on-demand features, to Feast's saved dataset."""
        import ibis
        from feast.infra.offline_stores.duckdb import _write_data_source

        table = ibis.memtable(self.to_arrow(timeout=timeout))
        repository = str(self._config.repo_path)
        _write_data_source(table, storage.to_data_source(), repository, "overwrite", allow_overwrite)


class AsofRetrievalJob(QueryRetrievalJob):
    """A point-in-time join that returns rows in the order of the entity rows.

    `to_batches` yields joined columns, including inputs but not outputs of on-demand views. Features have the unique
    names `view:feature`; Feast's own results name them `view__feature` or `feature`.
    """

    def __init__(
        self,
        config: RepoConfig,
        entity_df: pd.DataFrame | str | tuple[datetime, datetime],
        joins: list[Join],
        feature_refs: list[str],
        on_demand: list[OnDemandFeatureView],
        full_feature_names: bool,
    ) -> None:
        """Store the arguments; reading the result runs the join.

        Two times instead of entity rows stand for all entities with a row between them that is within its time to live
        at the second one, the time as of which features are joined.

        Raises:
            ValueError: all entities are asked for, and no view has all join keys.
        """
        super().__init__(config)
        self._entity_df = entity_df
        self._joins = joins
        self.on_demand_feature_views = on_demand
        self.full_feature_names = full_feature_names
        self._keys = sorted({key for join in joins for key in join.keys.values()})
        # The range of timestamps is unknown before the join runs.
        self.metadata = RetrievalMetadata(features=feature_refs, keys=self._keys)
        self._stale_marked = self._found_marked = False
        self._names: list[str] = []
        # Views with fewer keys do not identify an entity.
        self._identifying = {join.view for join in joins if join.keys and sorted(join.keys.values()) == self._keys}
        self._entities_alone = False
        if isinstance(entity_df, tuple) and not self._identifying:
            raise ValueError(f"without entity rows, one view must have all join keys ({', '.join(self._keys)})")

    def mark_stale(self) -> None:
        """Add a column `stale_mark(view)` for each view with a time to live: whether TTL expiry hid a match."""
        self._stale_marked = True

    def mark_found(self) -> None:
        """Add a column `found_mark(view)` for each view: whether it has a row, even a row of nulls."""
        self._found_marked = True

    def entities_alone(self, views: Collection[str]) -> None:
        """Join nothing: without entity rows, yield the keys of the entities that these views have, sorted."""
        self._identifying.intersection_update(views)
        self._entities_alone = True

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches; see the class for the columns."""
        for batch in super().to_batches():
            yield batch.rename_columns(self._names)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        table = super()._to_arrow_internal(timeout)
        feasts = {f"{join.view}:{name}": called for join in self._joins for name, called in join.features.items()}
        names = [feasts.get(name, name) for name in self._names]
        twice = [reference for reference, name in feasts.items() if names.count(name) > 1]
        if twice:
            raise FeatureNameCollisionError(twice, self.full_feature_names)
        return table.rename_columns(names)

    def _query(self, connection: duckdb.DuckDBPyConnection) -> str:
        for i, join in enumerate(self._joins):
            self._register(connection, f"source_{i}", join.source, join.columns())
        if isinstance(self._entity_df, tuple) and self._entities_alone:
            self._names = self._keys
            return self._all_entities(*self._entity_df)
        entities, event = self._register_entities(connection)
        selected = {name: f"e.{quote(name)}" for name in entities.names}
        joined = ["FROM entities AS e"]
        for i, join in enumerate(self._joins):
            missing = set(join.keys.values()) - set(entities.names)
            if missing:
                raise FeastEntityDFMissingColumnsError(missing, set(entities.names))
            joined.append(asof(f"source_{i}", f"f{i}", join, entities, event))
            selected |= {f"{join.view}:{feature}": value(f"f{i}", join, feature, event) for feature in join.features}
            if self._stale_marked and join.ttl:
                fresh = is_fresh(f"f{i}", join.ttl, event)
                selected[stale_mark(join.view)] = f"coalesce(NOT ({fresh}), false)"
            if self._found_marked:
                selected[found_mark(join.view)] = is_found(f"f{i}", join.ttl, event)
        self._names = list(selected)
        # DuckDB treats names that differ only in case as equal.
        columns = ", ".join(f"{each} AS c{place}" for place, each in enumerate(selected.values()))
        return f"SELECT {columns} {' '.join(joined)} ORDER BY e.{ROW}"

    def _all_entities(self, start: datetime, end: datetime) -> str:
        rows = [
            entities_of(f"source_{i}", join, start, end)
            for i, join in enumerate(self._joins)
            if join.view in self._identifying
        ]
        # Sorted, so that the same entities give the same bytes.
        return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(rows)}) ORDER BY ALL"

    def _register_entities(self, connection: duckdb.DuckDBPyConnection) -> tuple[pa.Schema, str]:
        """Create the view `entities` with row numbers. Return its other columns and the name of the event timestamp."""
        if not isinstance(self._entity_df, pd.DataFrame):
            kind, query = "VIEW", self._entity_df
            if isinstance(query, tuple):  # a table, because a view would be evaluated for each use
                time = f"TIMESTAMPTZ '{query[1].isoformat()}' AS event_timestamp"
                kind, query = "TABLE", f"SELECT *, {time} FROM ({self._all_entities(*query)})"
            connection.execute(f"CREATE {kind} entities AS SELECT *, row_number() OVER () AS {ROW} FROM ({query})")
            schema = connection.sql("SELECT * FROM entities LIMIT 0").to_arrow_table().schema
            schema = schema.remove(schema.get_field_index(ROW))
            timestamps = [field.name for field in schema if pa.types.is_timestamp(field.type)]
            return schema, "event_timestamp" if "event_timestamp" in timestamps else timestamps[0]
        rows = pa.Table.from_pandas(self._entity_df, preserve_index=False)
        event = infer_event_timestamp_from_entity_df(dict(self._entity_df.dtypes))
        connection.register("entities", rows.append_column(ROW, pa.arange(0, rows.num_rows)))
        return rows.schema, event


def _limit_memory(connection: duckdb.DuckDBPyConnection, limit: str) -> None:
    connection.execute(f"SET memory_limit = '{limit}'")
    ((parsed,),) = connection.sql("SELECT current_setting('memory_limit')").fetchall()
    number, _, unit = parsed.partition(" ")
    connection.execute(f"SET memory_limit = '{float(number) * BUFFER_SHARE} {unit}'")
