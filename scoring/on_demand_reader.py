"""On-demand features of a request: what an online store holds, and what the views' functions make of it.

The functions are called as in a batch run (`scoring.on_demand_views`), so that both agree. Feast's own way serves where
that can't be: a source under another name, aggregations, what is written to the online store, and inputs other than
numbers, truth values, texts and moments.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
from feast.on_demand_feature_view import OnDemandFeatureView

from scoring.decoding import VALUE_FIELDS
from scoring.errors import UnusableFeature
from scoring.feast_reader import FeastReader
from scoring.features import Feature, ModelFeatures
from scoring.on_demand_views import OnDemandViews, declared_types
from scoring.online import RUNNING_VIEW, StoreRead, StoreReader

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore


class OnDemandReader:
    """A `StoreReader` that adds to what another one reads."""

    def __init__(self, stored: StoreReader, views: OnDemandViews, types: Mapping[str, pa.DataType]) -> None:
        """Args: what reads the functions' inputs, the views, and the types of a request's columns."""
        self.stored = stored
        self._views = views
        self._types = types

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """See `StoreReader.read`."""
        read = self.stored.read(entity_rows)
        try:
            asked = {name: pa.array(entity_rows[name], kind) for name, kind in self._types.items()}
            rows = self._views.add(self._views.declared(pa.table({**asked, **read.columns})))
        except Exception as error:  # whatever a function raises
            raise UnusableFeature(RUNNING_VIEW, type(error).__name__) from error
        return StoreRead(read.written_s, {name: rows[name].combine_chunks() for name in rows.column_names})


def on_demand_reader(
    store: "FeatureStore",
    features: ModelFeatures,
    bulk: "Callable[[FeatureStore, ModelFeatures], StoreReader | None] | None" = None,
) -> OnDemandReader | None:
    """A reader of features of which some are on demand; None where Feast has to compute them itself.

    Args:
        store: the Feast store.
        features: what is needed.
        bulk: what makes a faster reader of stored features than Feast, if it can.
    """
    service = store.registry.get_feature_service(features.service, store.project, allow_cache=True)
    needed = {each.on_demand_view for each in features.features}
    views = [view for view in _views_of(store, service) if view.projection.name_to_use() in needed]
    inputs = _inputs(views)
    asked_for = {name for view in views for source in view.source_request_sources.values() for name in _names(source)}
    if inputs is None or not asked_for <= features.request_types.keys():
        return None
    plain = {each.column: each for each in features.features if not each.on_demand}
    plain |= {each.column: each for each in inputs if each.column not in plain}
    to_read = msgspec.structs.replace(features, features=tuple(plain.values()))
    stored = bulk(store, to_read) if bulk else None
    if stored is None:
        if any(each.name_alias or each.join_key_map for each in service.feature_view_projections):
            return None  # references can't say so
        of_views = [Feature(view.name, view.columns[0], pa.null(), (view.name,)) for view in features.views]
        stored = FeastReader(store, to_read, sorted({each.reference for each in (*plain.values(), *of_views)}))
    references = [each.reference for each in features.features]
    types = {key.name: key.arrow_type for key in features.join_keys}
    return OnDemandReader(stored, OnDemandViews(views, references), types | _only(features.request_types, asked_for))


def _views_of(store: "FeatureStore", service: "FeatureService") -> list[OnDemandFeatureView]:
    views = []
    for projection in service.feature_view_projections:
        view: Any = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        if isinstance(view, OnDemandFeatureView):
            views.append(view.with_projection(projection))
    return views


def _inputs(views: Sequence[OnDemandFeatureView]) -> list[Feature] | None:
    """What the views read of other views; None if that, or what they do with it, is something that only Feast can."""
    inputs = []
    for view in views:
        if view.mode not in {"pandas", "python"} or view.aggregations or view.write_to_online_store:
            return None
        for source in view.source_feature_view_projections.values():
            for name, kind in declared_types(source.features).items():
                if source.name_alias or source.join_key_map or kind is None or not _is_read(kind):
                    return None
                column = f"{source.name}__{name}"
                inputs.append(Feature(column, column, kind, (source.name,)))
    return inputs


def _is_read(kind: pa.DataType) -> bool:
    return kind in VALUE_FIELDS or pa.types.is_timestamp(kind)


def _names(source: Any) -> list[str]:
    return [field.name for field in source.schema]


def _only(types: Mapping[str, pa.DataType], names: set[str]) -> dict[str, pa.DataType]:
    return {name: kind for name, kind in types.items() if name in names}
