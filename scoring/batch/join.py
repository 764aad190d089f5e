"""Joins the rows of a batch request with a model's features as they were known at each row's event timestamp."""

import collections
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.batch.request import entity_columns, read_batch_request
from scoring.errors import BatchRequestError, FeatureStoreError
from scoring.feast_plugins.join_keys import ROW
from scoring.features.model_features import Masks, ModelFeatures
from scoring.files.parquet import ParquetFiles, RowsInTurn, no_rows, write_tables
from scoring.imports import inside

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.feast_plugins.offline_query import AsofRetrievalJob
    from scoring.features.on_demand_views import OnDemandViews

# A parquet reader takes one row group at a time: larger ones would take memory that grows with the request (pyarrow's
# default size).
ROWS_PER_GROUP = 1 << 20
# DuckDB 2.0 reads these exactly as pyarrow 25 does.
CODECS = frozenset({"UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "LZ4", "ZSTD"})
ENCODINGS = frozenset(
    {"PLAIN", "PLAIN_DICTIONARY", "RLE", "RLE_DICTIONARY", "DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY"}
    | {"DELTA_LENGTH_BYTE_ARRAY", "BYTE_STREAM_SPLIT"}
)


class PointInTimeJoin:
    """Joins one request with a model's features through Feast's offline store, and counts the rows.

    Times to live of feature views apply. With this project's offline store the rows stream in bounded memory. With
    another store, or with an on-demand view whose function compares rows (`scoring.batch.on_demand_blocks`), the
    whole result is held in memory.
    """

    def __init__(
        self, store: "FeatureStore", features: ModelFeatures, request: Path, origin: str | None = None
    ) -> None:
        """Store the arguments; `tables` reads the request.

        Args:
            store: the Feast store.
            features: the features that fill the model's inputs.
            request: a file, as for `read_batch_request`. A copy of its rows may be written to the same folder.
            origin: the file that `request` was copied from, for error messages.
        """
        self._store = store
        self._features = features
        self._request = request
        self._origin = origin
        self._doing = f"joining features of service {features.service!r}"
        self.rows = 0
        """Number of rows that `tables` has yielded."""
        self.expected = 0
        """Number of rows of the request, once `tables` has read it."""
        self.stale: dict[str, int] = {}
        """View → number of these rows for which only expired feature rows were found. Empty if the offline store does
        not report it."""

    def tables(self) -> Iterator[pa.Table]:
        """Read the request, check it and join it.

        Yields:
            The request's columns, then the inputs that Feast fills, with the signature's order and types. The rows are
            in the request's order; null means unknown at that time.

        Raises:
            BatchRequestError: see `read_batch_request`.
            FeatureStoreError: the offline store failed, or rows were lost or duplicated.
            OSError: the copy can't be written.
        """
        checked = read_batch_request(self._request, self._features, self._origin)
        first = next(checked)  # a wrong column is reported before the join begins
        source = self._request
        rows: Iterator[pa.Table] = itertools.chain([first], checked)
        if not joins_in_place(source, self._features):
            source = self._request.with_suffix(".typed.parquet")
            write_tables(rows, source, {})
            rows = _rows_of(source)
        self.expected = pq.read_metadata(source).num_rows
        if self.expected == 0:
            yield with_inputs(self._features, pa.concat_tables(rows), no_features(self._features))
            return
        try:
            for own, joined, absent in self._results(source, rows):
                yield with_inputs(self._features, own, joined, absent)
                self.rows += own.num_rows
        except FeatureStoreError:
            # A bad row may be the cause; reading on raises an error that names it.
            collections.deque(checked, maxlen=0)
            raise
        if self.rows != self.expected:
            raise lost_rows_error(self._store, self._features, self.expected, self.rows)

    def _results(self, source: Path, rows: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table, Masks]]:
        """Yield the request's rows, their features (`view:feature`), and masks of the rows for which a view has no row.

        Only this project's offline store provides the masks, and only if an on-demand view needs them.
        """
        from scoring.features.on_demand_views import on_demand_views

        repository = Path(self._store.repo_path)
        on_demand = on_demand_views(self._features, repository)
        try:
            if job := self._streaming_job(source):
                yield from self._streamed(job, on_demand, rows)
                return
            table = pa.concat_tables(rows)
            with inside(repository):
                joined = self._join_whole(table)
                if on_demand is not None:
                    joined = on_demand.add(on_demand.declared(joined))
            yield table, joined, {}
        except (BatchRequestError, FeatureStoreError, GeneratorExit):
            raise
        except Exception as error:  # exception types differ between offline stores
            raise FeatureStoreError(self._doing, error) from error

    def _streaming_job(self, source: Path) -> "AsofRetrievalJob | None":
        """Return the join of a parquet file by this project's offline store; None if another store joins."""
        from scoring.feast_plugins.offline_query import AsofRetrievalJob
        from scoring.feast_plugins.offline_sql import parquet_files, quote
        from scoring.feast_plugins.offline_store import AsofOfflineStoreConfig

        if not isinstance(self._store.config.offline_store, AsofOfflineStoreConfig):
            return None
        # Select only what the join needs: other columns may have types that DuckDB lacks (2.0: nanoseconds with a zone,
        # decimals beyond 38 digits, durations, dictionaries), or the names of the marks.
        selected = ", ".join(quote(name) for name in entity_columns(self._features))
        query = f"SELECT {selected} FROM {parquet_files([str(source.absolute())])}"
        with inside(Path(self._store.repo_path)):
            job = self._store.get_historical_features(query, self._features.feast.service, full_feature_names=True)
        return job if isinstance(job, AsofRetrievalJob) else None

    def _streamed(
        self, job: "AsofRetrievalJob", on_demand: "OnDemandViews | None", rows: Iterator[pa.Table]
    ) -> Iterator[tuple[pa.Table, pa.Table, Masks]]:
        """Yield the items of `_results` from a job of this project's store."""
        from scoring.batch.on_demand_blocks import with_on_demand_features
        from scoring.feast_plugins.offline_sql import found_mark, stale_mark

        job.mark_stale()
        stale = {view.name: stale_mark(view.name) for view in self._features.views if view.ttl_s is not None}
        self.stale = dict.fromkeys(stale, 0)
        found: dict[str, str] = {}
        batches = job.to_batches()
        results: Iterator[pa.Table] = (pa.Table.from_batches([batch]) for batch in batches)
        if on_demand is not None:
            job.mark_found()
            found = {view.name: found_mark(view.name) for view in self._features.views}
            results = with_on_demand_features(on_demand, batches, [*stale.values(), *found.values()])
        names = list(entity_columns(self._features))
        compared = [*(key.name for key in self._features.join_keys), EVENT_TIMESTAMP]
        first = next(rows)
        own = RowsInTurn(itertools.chain([first], rows), first.schema)
        for result in results:
            mine = own.take(result.num_rows)
            if not all(mine[name].equals(result[name]) for name in compared):
                raise FeatureStoreError(self._doing, "it returned the rows in a different order")
            for view, mark in stale.items():
                self.stale[view] += pc.sum(result[mark]).as_py() or 0
            absent = {view: pc.invert(result[mark]) for view, mark in found.items()}
            yield mine, result.drop_columns(names), absent

    def _join_whole(self, request: pa.Table) -> pa.Table:
        """Return Feast's features for all rows at once, without on-demand features."""
        numbers = pa.array(range(request.num_rows), pa.int64())
        names = list(entity_columns(self._features))
        entity_rows = request.select(names).append_column(ROW, numbers)
        service = self._features.feast.service
        job = self._store.get_historical_features(entity_rows.to_pandas(), service, full_feature_names=True)
        joined = job._to_arrow_internal() if job.on_demand_feature_views else job.to_arrow()
        feast_names = {name: column for column, name in self._features.feast_names.items()}
        joined = joined.rename_columns([feast_names.get(name, name) for name in joined.column_names])
        joined = joined.take(pc.sort_indices(joined[ROW]))
        if joined.num_rows != request.num_rows or not joined[ROW].equals(entity_rows[ROW]):
            raise lost_rows_error(self._store, self._features, request.num_rows, joined.num_rows)
        for name in names:  # restore the values from before the pandas conversion
            if name in joined.column_names:
                joined = joined.set_column(joined.column_names.index(name), name, request[name])
        return joined


def joins_in_place(request: Path, features: ModelFeatures) -> bool:
    """Return whether a request is a parquet file that DuckDB can join without a copy.

    Copying ten million rows takes a sixth of the join's CPU time. The columns must already have the types that
    `read_batch_request` returns, and the row groups must be of bounded size. False if the file can't be read;
    `read_batch_request` raises the error.
    """
    if request.suffix != ".parquet":
        return False
    needed = entity_columns(features)
    try:
        with pq.ParquetFile(request) as source:
            schema, metadata = source.schema_arrow, source.metadata
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(column) for group in groups for column in range(metadata.num_columns)]
    return (
        all(schema.names.count(name) == 1 and schema.field(name).type == dtype for name, dtype in needed.items())
        and all(group.num_rows <= ROWS_PER_GROUP for group in groups)
        and all(chunk.compression in CODECS and ENCODINGS.issuperset(chunk.encodings) for chunk in chunks)
    )


def _rows_of(file: Path) -> Iterator[pa.Table]:
    """Yield an empty table of a parquet file's schema, then its rows."""
    with ParquetFiles([file]) as opened:
        yield no_rows(opened.schema)
        yield from opened.between(0, opened.rows)


def no_features(features: ModelFeatures) -> pa.Table:
    """Return the columns that Feast adds, without rows."""
    columns = {feature.column: pa.nulls(0, feature.dtype) for feature in features.features}
    return pa.table(
        columns | {name: pa.nulls(0) for view in features.views for name in view.columns if name not in columns}
    )


def with_inputs(features: ModelFeatures, request: pa.Table, joined: pa.Table, absent: Masks | None = None) -> pa.Table:
    """Return request rows with the inputs that Feast fills.

    Args:
        features: the inputs to add.
        request: the rows.
        joined: Feast's columns `view:feature` for exactly these rows.
        absent: view → bool (n_rows,), whether it has no row. If None, a view whose columns are all null in a row counts
            as absent.

    Raises:
        FeatureStoreError: a value does not fit the type that its view declares or the model expects.
    """
    columns = {name: joined[name] for name in joined.column_names} | features.own_inputs(request)
    vectors = features.vectors(columns, unusable=absent or features.absent_views(columns))
    for name in features.signature.names:
        if name not in features.request_inputs:
            request = request.append_column(vectors.schema.field(name), vectors[name])
    return request


def lost_rows_error(store: "FeatureStore", features: ModelFeatures, rows: int, found: int) -> FeatureStoreError:
    """Return the error for an offline store that returned a different number of rows."""
    return FeatureStoreError(
        f"joining features of service {features.service!r}",
        f"it returned {found} rows for {rows} entity rows (offline_store {store.config.offline_store.type}). Feast's "
        "file store drops rows of equal keys and timestamp, and stale ones: docs/feature-stores.md names others.",
    )
