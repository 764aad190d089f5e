"""Feature vectors as of a moment in the past: the point-in-time join, done by Feast's offline store."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.batch.typed_request import EVENT_TIMESTAMP, entity_columns
from scoring.errors import BatchRequestError, FeatureStoreError
from scoring.feast_plugins.join_keys import ROW
from scoring.features.model_features import Masks, ModelFeatures
from scoring.files.parquet import ParquetFiles, RowsInTurn
from scoring.imports import inside

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.feast_plugins.offline_query import AsofRetrievalJob
    from scoring.features.on_demand_views import OnDemandViews


def with_point_in_time_features(
    store: "FeatureStore",
    features: ModelFeatures,
    request: Path,
    stale: dict[str, int] | None = None,
    checked: Iterator[pa.Table] | None = None,
) -> Iterator[pa.Table]:
    """The request's rows and the model's features as they were known at each row's event_timestamp.

    Views' times to live hold. With this project's offline store the rows stream, in bounded memory; with another
    one, or with an on-demand view whose function compares rows (`scoring.batch.on_demand_blocks`), the result
    is in memory as a whole.

    Args:
        store: the Feast store; its offline store does the join.
        features: which features of which service make the model's vector.
        request: parquet file of entity rows (`read_batch_request`): all columns of the request.
        stale: is filled while the rows are read, with this project's offline store: view → number of rows for which
            its latest row was past its time to live. Other stores don't tell.
        checked: the same rows once more, where they are checked only now, while they are joined.

    Yields:
        The request's columns, then the inputs that Feast fills, in signature order and types. Same rows, same order;
        null = unknown at that moment.

    Raises:
        FeatureStoreError: the offline store failed, or lost or doubled rows.
        BatchRequestError: what `checked` raises.
    """
    rows = pq.read_metadata(request).num_rows
    if rows == 0:
        own = pa.concat_tables(checked) if checked else pq.read_table(request)
        yield complete(features, own, features_of_none(features))
        return
    seen = 0
    for own, joined, absent in _joined(store, features, request, stale, checked):
        yield complete(features, own, joined, absent)
        seen += own.num_rows
    if seen != rows:
        raise lost_rows(store, features, rows, seen)


def features_of_none(features: ModelFeatures) -> pa.Table:
    """Feast's answer for no entity rows: its columns, without rows."""
    columns = {feature.column: pa.nulls(0, feature.dtype) for feature in features.features}
    return pa.table(
        columns | {name: pa.nulls(0) for view in features.views for name in view.columns if name not in columns}
    )


def _joined(
    store: "FeatureStore",
    features: ModelFeatures,
    request: Path,
    stale: dict[str, int] | None,
    checked: Iterator[pa.Table] | None,
) -> Iterator[tuple[pa.Table, pa.Table, Masks]]:
    """Request rows, Feast's answer for them, `view__feature`, row by row, and of which of them a view has no row.

    That is asked for only where it changes something, and known only from this project's store.
    """
    from scoring.feast_plugins.offline_query import AsofRetrievalJob
    from scoring.feast_plugins.offline_sql import parquet_file, quote
    from scoring.feast_plugins.offline_store import AsofOfflineStoreConfig
    from scoring.features.on_demand_views import on_demand_views

    request = request.absolute()
    on_demand = on_demand_views(store, features, Path(store.repo_path))
    doing = f"joining features of service {features.service!r}"
    compared = [*(key.name for key in features.join_keys), EVENT_TIMESTAMP]
    try:
        if isinstance(store.config.offline_store, AsofOfflineStoreConfig):
            # Only what the join needs: other columns have types that DuckDB has not (2.0: nanoseconds with a zone,
            # decimals beyond 38 digits, durations, dictionaries), and names that may be those of our marks.
            names = entity_columns(features)
            selected = ", ".join(quote(name) for name in names)
            with inside(Path(store.repo_path)):
                service = store.get_feature_service(features.service)
                query = f"SELECT {selected} FROM {parquet_file(request)}"
                job = store.get_historical_features(query, service, True)
            if isinstance(job, AsofRetrievalJob):
                # Its sources' paths are absolute: the reader of these rows stays in its own working directory.
                with ParquetFiles([request]) as file:
                    tables = checked or file.between(0, file.rows)
                    first = next(tables)
                    own = RowsInTurn(itertools.chain([first], tables), first.schema)
                    for table, absent in _streamed(job, features, on_demand, stale):
                        mine = own.take(table.num_rows)
                        if not all(mine[name].equals(table[name]) for name in compared):
                            raise FeatureStoreError(doing, "its rows came back in another order than they went in")
                        yield mine, table.drop_columns(names), absent
                return
        table = pa.concat_tables(checked) if checked else pq.read_table(request)
        with inside(Path(store.repo_path)):
            joined = _join_whole(store, features, table)
            if on_demand is not None:
                joined = on_demand.add(on_demand.declared(joined))
        yield table, joined, {}
    except (BatchRequestError, FeatureStoreError, GeneratorExit):
        raise
    except Exception as error:  # every offline store raises its own kinds
        raise FeatureStoreError(doing, error) from error


def _streamed(
    job: "AsofRetrievalJob", features: ModelFeatures, on_demand: "OnDemandViews | None", stale: dict[str, int] | None
) -> Iterator[tuple[pa.Table, Masks]]:
    """What a job of this project's store joins, and where a view has no row; rows past a time to live are counted."""
    from scoring.batch.on_demand_blocks import with_on_demand_features
    from scoring.feast_plugins.offline_sql import found_mark, stale_mark

    marks: dict[str, str] = {}
    if stale is not None:
        job.mark_stale()
        marks = {view.name: stale_mark(view.name) for view in features.views if view.ttl_s is not None}
        stale.update(dict.fromkeys(marks, 0))
    found: dict[str, str] = {}
    if on_demand is not None:
        job.mark_found()
        found = {view.name: found_mark(view.name) for view in features.views}
    batches = job.to_batches()
    rows: Iterator[pa.Table] = (pa.Table.from_batches([batch]) for batch in batches)
    if on_demand is not None:
        rows = with_on_demand_features(on_demand, batches, [*marks.values(), *found.values()])
    for table in rows:
        for view, mark in marks.items():
            stale[view] += pc.sum(table[mark]).as_py() or 0  # type: ignore[index]
        yield table, {view: pc.invert(table[mark]) for view, mark in found.items()}


def _join_whole(store: "FeatureStore", features: ModelFeatures, request: pa.Table) -> pa.Table:
    entity_rows = request.select(entity_columns(features)).append_column(
        ROW, pa.array(range(request.num_rows), pa.int64())
    )
    service = store.get_feature_service(features.service)
    job = store.get_historical_features(entity_rows.to_pandas(), service, full_feature_names=True)
    joined = job._to_arrow_internal() if job.on_demand_feature_views else job.to_arrow()  # without what is on demand
    joined = joined.take(pc.sort_indices(joined[ROW]))
    if joined.num_rows != request.num_rows or not joined[ROW].equals(entity_rows[ROW]):
        raise lost_rows(store, features, request.num_rows, joined.num_rows)
    own = [name for name in entity_columns(features) if name in joined.column_names]
    for name in own:  # as they were before pandas had them
        joined = joined.set_column(joined.column_names.index(name), name, request[name])
    return joined


def complete(features: ModelFeatures, request: pa.Table, joined: pa.Table, absent: Masks | None = None) -> pa.Table:
    """Request rows with the inputs that Feast fills, from its answer for these very rows, `view__feature`.

    Args:
        features: which inputs.
        request: the rows.
        joined: Feast's answer.
        absent: view → bool (n_rows,), where it has no row; if that is not known, where all that was joined is null.

    Raises:
        FeatureStoreError: a value does not fit the type that its view declares or the model expects.
    """
    own = {name: request[name] for name in features.request_inputs}
    columns = {name: joined[name] for name in joined.column_names} | own
    vectors = features.vectors(columns, unusable=absent or features.absent_views(columns))
    for name in features.signature.names:
        if name not in own:
            request = request.append_column(vectors.schema.field(name), vectors[name])
    return request


def lost_rows(store: "FeatureStore", features: ModelFeatures, rows: int, found: int) -> FeatureStoreError:
    """The error that tells how many rows went in and how many came out."""
    return FeatureStoreError(
        f"joining features of service {features.service!r}",
        f"{rows} entity rows went in and {found} came out (offline_store {store.config.offline_store.type}). Feast's "
        "file store drops rows of equal keys and timestamp, and stale ones: docs/feature-stores.md names others.",
    )
