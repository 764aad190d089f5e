"""The sources of a model's inputs: each is filled from one feature, or from the request."""

import contextlib
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import Signature, as_stored, conform, conform_or_null, or_null
from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.feast_plugins.join_keys import JoinKey, Keys

NOT_FOUND = "not_found"
STALE = "stale"
NULL_FEATURE = "null_feature"
# From MANY inputs on, those of up to FEW_ROWS rows are converted together.
MANY = 16
FEW_ROWS = 2000

Columns = Mapping[str, pa.Array | pa.ChunkedArray]
Masks = Mapping[str, pa.Array | pa.ChunkedArray]


class View(msgspec.Struct, frozen=True):
    """One feature view that a model depends on, under its name in the feature service."""

    name: str
    columns: tuple[str, ...]
    """Its columns, `view:feature`: first those that the service lists, then those that on-demand views read. The first
    column's event timestamp applies to the whole row."""
    ttl_s: float | None
    """Seconds after its event timestamp for which a row may be used; None without a limit."""
    keys: Keys = ()
    """The view's own join keys, in the order of a serialized entity key, each with the key of the request that fills
    it. For a view without entities, this is Feast's own key (`NO_ENTITY`)."""
    renamed: bool = False
    """Whether the service renames the view or its join keys, which `view:feature` can't express."""


class Feature(msgspec.Struct, frozen=True):
    """One model input and the feature that fills it."""

    input: str
    column: str
    """Feast's reference `view:feature`. It is unique, because a view's name can't contain a colon."""
    dtype: pa.DataType
    """The type that the feature view declares. Values are first converted to it, so that offline and online features
    are identical to the bit."""
    views: tuple[str, ...]
    """The views whose rows it is read or computed from: its own view, or those that an on-demand view reads."""
    on_demand_view: str | None = None
    """Name in the service of the on-demand view that computes it; None if it is stored."""

    @property
    def on_demand(self) -> bool:
        """Return whether an on-demand view computes it."""
        return self.on_demand_view is not None

    @property
    def name(self) -> str:
        """Return its name in its feature view."""
        return self.column.partition(":")[2]


class FeastObjects(msgspec.Struct, frozen=True):
    """Feast's own objects for a model's features, for the code that calls Feast.

    Pickling removes the content: Spark's executors call no store, and importing Feast would take each of them seconds.
    """

    service: Any = None
    """What Feast reads: the FeatureService, or a list of `view:feature`."""
    views: dict[str, Any] = {}
    """FeatureViews by their names in the service, in its order."""
    on_demand_views: tuple[Any, ...] = ()
    """OnDemandFeatureViews that compute features of the model, with the service's projections."""

    def __reduce__(self) -> tuple[type["FeastObjects"], tuple[()]]:
        return FeastObjects, ()


def feast_name(column: str) -> str:
    """Return `view__feature`, the name of the column `view:feature` in Feast's results and on-demand functions."""
    return column.replace(":", "__", 1)


class ModelFeatures(msgspec.Struct, frozen=True, dict=True):
    """The link between one model version and the feature store, resolved once when the version is loaded."""

    service: str
    """Name of the feature service; without one, `view:feature` of each input that a feature fills, comma-separated."""
    join_keys: tuple[JoinKey, ...]
    features: tuple[Feature, ...]
    views: tuple[View, ...]
    request_inputs: tuple[str, ...]
    """Columns supplied by the request in addition to the keys: inputs of the model, or of an on-demand feature view."""
    signature: Signature
    request_types: dict[str, pa.DataType] = {}
    """Request column that an on-demand feature view needs → its declared type. Columns of a type that no model input
    may have are not listed, and their values are passed on unchanged."""
    served: dict[str, str] = {}
    """All features of the service, including those that the model does not use: `view:feature` → feature."""
    feast: FeastObjects = FeastObjects()
    overridable: tuple[str, ...] = ()
    """Inputs filled by features, whose values an online request may override."""

    @functools.cached_property
    def feast_names(self) -> dict[str, str]:
        """Return `view:feature` → `view__feature`, its column in Feast's own results, for all that the model needs.

        Raises:
            FeatureStoreError: Feast would return another feature under the same name.
        """
        needed = {feature.column for feature in self.features}.union(*(view.columns for view in self.views))
        same: dict[str, list[str]] = {}
        for column in sorted(needed | self.served.keys()):
            same.setdefault(feast_name(column), []).append(column)
        for name, columns in same.items():
            if len(columns) > 1 and needed.intersection(columns):
                doing = f"reading service {self.service!r} through Feast"
                raise FeatureStoreError(doing, f"it returns both {' and '.join(columns)} as {name}: rename one of them")
        return {column: feast_name(column) for column in needed}

    @functools.cached_property
    def request_columns(self) -> dict[str, pa.DataType | None]:
        """Return the columns that each entity row needs, with their types: join keys first, then the request inputs.

        None stands for a type that an on-demand view declares and no model input may have.
        """
        types = self.request_types | {column.name: column.dtype for column in self.signature.inputs}
        keys = {key.name: key.arrow_type for key in self.join_keys}
        return {name: types.get(name) for name in (*keys, *self.request_inputs)} | keys

    def vectors(self, columns: Columns, unusable: Masks) -> pa.Table:
        """Return feature vectors of n_rows, with the signature's columns, order and types; null means unknown.

        Args:
            columns: arrays (n_rows,) by name: features as `view:feature`, and request inputs by input name.
            unusable: view name → bool (n_rows,), rows without a usable row of that view. There, the inputs from the
                view become null, including those that an on-demand view computed from it.

        Raises:
            UnusableFeature: a value does not fit the type that the view declares, or a request input that of the model.
        """
        by_input = {feature.input: feature for feature in self.features}
        together = self._converted_together(columns, unusable) if len(by_input) >= MANY else {}
        vectors = []
        for model_input in self.signature.inputs:
            feature = by_input.get(model_input.name)
            if model_input.name in together:
                vectors.append(together[model_input.name])
            elif feature is None:
                vectors.append(conform(columns[model_input.name], model_input.dtype, model_input.name))
            else:
                column = columns[feature.column]
                if not feature.on_demand and pa.types.is_timestamp(feature.dtype):
                    column = as_stored(column, column.type)
                column = conform(column, feature.dtype, feast_name(feature.column))
                for view in feature.views:
                    if view in unusable:
                        column = pc.if_else(unusable[view], pa.scalar(None, feature.dtype), column)
                vectors.append(conform_or_null(column, model_input.dtype))
        return pa.Table.from_arrays(vectors, schema=self.signature.schema)

    def _converted_together(self, columns: Columns, unusable: Masks) -> dict[str, pa.Array]:
        """Return some inputs of `vectors`: many columns of a few values take nearly the time of one."""
        types = {each.name: each.dtype for each in self.signature.inputs}
        alike: dict[Any, list[Feature]] = {}
        for feature in self.features:
            column = columns[feature.column]
            few = isinstance(column, pa.Array) and len(column) <= FEW_ROWS and not column.null_count
            if few and not pa.types.is_timestamp(feature.dtype) and unusable.keys().isdisjoint(feature.views):
                alike.setdefault((column.type, feature.dtype, types[feature.input]), []).append(feature)
        converted: dict[str, pa.Array] = {}
        for (_, declared, target), features in alike.items():
            with contextlib.suppress(UnusableFeature):  # which names the input if it is converted alone
                whole = conform(pa.concat_arrays([columns[each.column] for each in features]), declared, "")
                whole, rows = conform_or_null(whole, target), len(columns[features[0].column])
                converted |= {each.input: whole.slice(place * rows, rows) for place, each in enumerate(features)}
        return converted

    def written_vectors(self, rows: pa.Table) -> pa.Table:
        """Return feature vectors of batch_input's rows, with the signature's order and types; null means unknown.

        The columns that Feast filled contain the results of `vectors`.
        """
        own = self.own_inputs(rows)
        columns = [own[name] if name in own else rows[name] for name in self.signature.names]
        return pa.Table.from_arrays(columns, schema=self.signature.schema)

    def own_inputs(self, rows: pa.Table) -> dict[str, pa.ChunkedArray]:
        """Return the inputs supplied by the request, in the model's types, with null for NaN and infinity.

        A join key that is also an input keeps its own type for the join. The model gets null for a key that its type
        can't represent, such as an integer beyond 2**53 in a double.
        """
        keys = {key.name for key in self.join_keys}
        return {
            field.name: or_null(rows[field.name], field.type)
            if field.name in keys
            else conform(rows[field.name], field.type, field.name)
            for field in self.signature.schema
            if field.name in self.request_inputs
        }

    def absent_views(self, columns: Columns) -> dict[str, pa.Array]:
        """Return view name → bool (n_rows,): rows for which a point-in-time join found only nulls."""
        return {
            view.name: _all(pc.is_null(columns[column]) for column in view.columns if column in columns)
            for view in self.views
        }


def missing_reasons(vectors: pa.Table, absent: Masks, stale: Masks) -> pa.Array:
    """Return why each entity row can't be scored as it is: string (n_rows,), null if its feature vector is complete.

    Args:
        vectors: feature vectors, one column per input.
        absent: view name → bool (n_rows,), whether the view has no row for the entity.
        stale: view name → bool (n_rows,), whether the view has no row that is within its time to live.

    `not_found` takes precedence over `stale`, and `stale` over `null_feature`.
    """
    reason = pa.nulls(vectors.num_rows, pa.string())
    if any(column.null_count for column in vectors.columns):
        reason = pc.if_else(_any(pc.is_null(column) for column in vectors.columns), NULL_FEATURE, reason)
    if stale:
        reason = pc.if_else(_any(stale.values()), STALE, reason)
    if absent:
        reason = pc.if_else(_any(absent.values()), NOT_FOUND, reason)
    return reason.combine_chunks() if isinstance(reason, pa.ChunkedArray) else reason


def reasons_from_nulls(features: ModelFeatures, vectors: pa.Table) -> pa.Array:
    """Return `missing_reasons` for vectors that a point-in-time join wrote, for which only the nulls are known.

    A view counts as absent in a row if every input that depends on it is null. This includes rows past their time to
    live, which the join did not return.
    """
    absent = {}
    for view in features.views:
        inputs = [feature.input for feature in features.features if view.name in feature.views]
        # Null counts are known without reading the values, and most rows are complete.
        if all(vectors[name].null_count for name in inputs):
            absent[view.name] = _all(pc.is_null(vectors[name]) for name in inputs)
    return missing_reasons(vectors, absent, {})


def _any(masks: Iterable[Any]) -> Any:
    return functools.reduce(pc.or_, masks)


def _all(masks: Iterable[Any]) -> Any:
    return functools.reduce(pc.and_, masks)
