"""Computes on-demand features of a request from the features in an online store.

The functions are called as in a batch run, so that the results agree. Feast computes the features itself if that is
not possible: for a source under another name, aggregations, views that are written to the online store, and inputs
other than numbers, booleans, strings and timestamps.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from feast.on_demand_feature_view import OnDemandFeatureView

from scoring.errors import FeatureStoreError, FunctionNotRunnable, UnusableFeature
from scoring.feast_plugins.value_decoder import VALUE_FIELDS
from scoring.features.model_features import Feature, ModelFeatures
from scoring.features.on_demand_views import FunctionFailed, OnDemandViews, request_types_of, sources_of
from scoring.online.bulk_reader import bulk_reader
from scoring.online.feast_reader import FeastReader
from scoring.online.reading import RUNNING_VIEW, EntityRows, StoreReader, request_column

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger(__name__)

CALLED = ("pandas", "python")
"""Modes of views whose functions are called here."""


class OnDemandOnline:
    """Adds on-demand features to the stored features of a request. Threads may share it."""

    def __init__(self, views: OnDemandViews, inputs: Sequence[Feature], types: Mapping[str, pa.DataType]) -> None:
        """Store the views, the features that they read from other views, and the types of their request fields."""
        self._views = views
        self.inputs = inputs
        self._sources = {each.column: each.views[0] for each in inputs}
        self._types = types

    def add(
        self,
        columns: Mapping[str, pa.Array],
        unusable: Mapping[str, pa.Array],
        entity_rows: EntityRows,
    ) -> dict[str, pa.Array]:
        """Return the columns, with on-demand features added as columns `view:feature`.

        Args:
            columns: `view:feature` → stored values (n,).
            unusable: view → bool (n,), rows that are missing or past their time to live. A function gets nulls for
                them, as from a point-in-time join.
            entity_rows: column of the request → n values.

        Raises:
            EntityRowsError: a request's value does not have the type that its view declares.
            UnusableFeature: a function raised, or its result is not what its view declares.
        """
        given = {name: request_column(name, entity_rows, kind) for name, kind in self._types.items()}
        for name, view in self._sources.items():
            column = columns[name]
            given[name] = (
                pc.if_else(unusable[view], pa.scalar(None, column.type), column) if view in unusable else column
            )
        try:
            rows = self._views.add(self._views.declared(pa.table(given)))
        except FunctionFailed as error:
            raise UnusableFeature(f"{RUNNING_VIEW} {error.view!r}", type(error.__cause__).__name__) from error
        except (ValueError, pa.ArrowException) as error:
            raise UnusableFeature(RUNNING_VIEW, type(error).__name__) from error
        computed = {name: rows[name].combine_chunks() for name in rows.column_names if name not in given}
        return {**columns, **computed}


def with_on_demand_views(
    store: "FeatureStore", features: ModelFeatures, views: OnDemandViews
) -> tuple[StoreReader, OnDemandOnline] | None:
    """Return how to look up features of which `views` compute some; None if Feast must compute them itself.

    Raises:
        FeatureStoreError: a view's function can't be run.
    """
    for view in views.views:
        _try_out(view)
    try:
        inputs = _inputs(views.views)
        types = {key.name: key.arrow_type for key in features.join_keys} | _request_types(views.views, features)
        stored = _stored_reader(store, features, inputs)
    except _OnlyFeast as reason:
        singletons = [view.name for view in views.views if view.singleton]
        if singletons:  # Feast would give each row the result of the first row (feast 0.67)
            doing = f"preparing on-demand view {singletons[0]!r}"
            raise FeatureStoreError(doing, f"it takes one row at a time, and {reason}") from None
        logger.warning(
            "Feast computes the on-demand features of service %r, with its own types: %s", features.service, reason
        )
        return None
    return stored, OnDemandOnline(views, inputs, types)


class _OnlyFeast(Exception):
    """The reason why Feast must compute the features itself."""


def _stored_reader(store: "FeatureStore", features: ModelFeatures, inputs: Sequence[Feature]) -> StoreReader:
    """Return a reader of the stored features and of the inputs of on-demand features."""
    stored = {each.column: each for each in features.features if not each.on_demand}
    stored = {each.column: each for each in inputs} | stored
    to_read = msgspec.structs.replace(features, features=tuple(stored.values()))
    reader = bulk_reader(store, to_read)
    if reader is not None:
        return reader
    renamed = [view.name for view in features.views if view.renamed]
    if renamed:
        raise _OnlyFeast(f"view {renamed[0]!r} has another name or other join keys in the service")
    of_views = [Feature(view.name, view.columns[0], pa.null(), (view.name,)) for view in features.views]
    return FeastReader(store, to_read, sorted({each.column for each in (*stored.values(), *of_views)}))


def _try_out(view: OnDemandFeatureView) -> None:
    """Call a view's function as `feast apply` did, but as loaded from the registry, without its module's imports.

    Raises:
        FunctionNotRunnable: it raised.
    """
    if view.mode not in CALLED or view.aggregations:
        return
    try:
        copy.copy(view).infer_features()
    except (Exception, SystemExit) as error:  # a function may raise anything
        raise FunctionNotRunnable(view.name, error) from error


def _inputs(views: Sequence[OnDemandFeatureView]) -> list[Feature]:
    """Return the features that the views read from other views."""
    inputs = []
    for view in views:
        if view.mode not in CALLED or view.aggregations or view.write_to_online_store:
            raise _OnlyFeast(f"view {view.name!r} is written to the online store, aggregates, or is not in Python")
        for source in sources_of(view):
            if source.renamed:
                raise _OnlyFeast(f"view {view.name!r} reads {source.name!r} by another name or other join keys")
            for name, kind in source.types.items():
                if kind is None or not (kind in VALUE_FIELDS or pa.types.is_timestamp(kind)):
                    raise _OnlyFeast(f"view {view.name!r} reads {name!r}, which is {kind}")
                column = f"{source.name}:{name}"
                inputs.append(Feature(column, column, kind, (source.name,)))
    return inputs


def _request_types(views: Sequence[OnDemandFeatureView], features: ModelFeatures) -> dict[str, pa.DataType]:
    """Return request field of the views → its type."""
    names = {name for view in views for name in request_types_of(view)}
    for name in sorted(names - features.request_types.keys()):
        raise _OnlyFeast(f"{name!r}, which comes with the request, has a type that no model input may have")
    return {name: kind for name, kind in features.request_types.items() if name in names}
