"""Resolves a model's inputs in its feature service, or else in the feature views, once per version."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from scoring.arrow.signature import NEUTRAL, Signature, holds_every_value
from scoring.errors import FeatureServiceNotFound, FeatureStoreError, MissingFeatures, ModelRefused
from scoring.feast_plugins.join_keys import KEY_TYPES, NO_ENTITY, JoinKey, Keys, KeyType
from scoring.features.model_features import FeastObjects, Feature, ModelFeatures, View, feast_name

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore


def link_features(
    store: "FeatureStore", model: str, service: str | None, signature: Signature, request_inputs: Sequence[str]
) -> ModelFeatures:
    """Find each input of the signature in the feature service, or among the declared request-time inputs.

    Without a feature service, each input must be a feature of exactly one view of the registry.

    An input has the name of its feature (`conv_rate`) or, if two views share that name, of its view and feature
    (`driver_stats__conv_rate`).

    Args:
        store: the Feast store. The cached copy of its registry is read.
        model: `name/version`, for error messages.
        service: name of the feature service; None if nothing names one.
        signature: the model's signature.
        request_inputs: inputs supplied by the request.

    Raises:
        FeatureServiceNotFound: the registry has no such service.
        MissingFeatures: the service, or the views, do not have some inputs. The message lists all of them.
        ModelRefused: a name is ambiguous, a type would lose values, a join key can't be looked up, or nothing names one
            of the registry's feature services.
        FeatureStoreError: the Feast registry can't be read.
    """
    feast_service: FeatureService | None = None
    if service is None:
        feast_views = _read_views(store, model)
        wanted = [name for name in signature.names if name not in request_inputs]
        projections = _project(model, wanted, feast_views)
    else:
        feast_service, feast_views = _read_service(store, service)
        projections = feast_service.feature_view_projections
    served = _ServedFeatures(model, projections, feast_views)
    features = _fill(model, service, signature, served, request_inputs)
    needed = _request_types(model, served.request_fields, {feature.input for feature in features})
    from_request = [name for name in signature.names if name in request_inputs]
    views = sorted({view for feature in features for view in feature.views})
    computing = {feature.on_demand_view for feature in features}
    return ModelFeatures(
        service=service or ", ".join(feature.column for feature in features),
        join_keys=tuple(served.keys.values()),
        features=tuple(features),
        views=tuple(map(served.view, views)),
        request_inputs=(*from_request, *sorted(needed.keys() - set(from_request))),
        signature=signature,
        request_types={name: dtype for name, dtype in needed.items() if dtype in NEUTRAL},
        served={feature.column: feature.name for feature in served.features},
        feast=FeastObjects(
            feast_service or [feature.column for feature in served.features],
            served.feast_views,
            tuple(view for name, view in served.on_demand_views.items() if name in computing),
        ),
    )


def _fill(
    model: str, service: str | None, signature: Signature, served: "_ServedFeatures", request_inputs: Sequence[str]
) -> list[Feature]:
    """Return the features that fill the signature's inputs, in order."""
    by_name: dict[str, list[Feature]] = {}
    for feature in served.features:
        by_name.setdefault(feature.name, []).append(feature)
        by_name.setdefault(feast_name(feature.column), []).append(feature)

    features, missing = [], []
    for model_input in signature.inputs:
        if model_input.name in request_inputs:
            key = served.keys.get(model_input.name)
            if key and not holds_every_value(key.arrow_type, model_input.dtype):
                raise ModelRefused(
                    model,
                    f"its input {key.name!r} is {model_input.dtype}, but the join key {key.name!r}, which fills it, is "
                    f"declared {key.dtype}, which can't be converted to it exactly. Train on the declared type.",
                )
            continue
        found = by_name.get(model_input.name, [])
        if not found:
            missing.append(model_input.name)
            continue
        if len(found) > 1:
            options = [feast_name(feature.column) for feature in found]
            remedy = f"name it one of {', '.join(options)}"
            if len(set(options)) < len(options):
                remedy = f"rename one of the features {', '.join(feature.column for feature in found)}"
            if service is None:
                remedy += ", or define a FeatureService with one of them and name that in its tag feast.feature_service"
            raise ModelRefused(model, f"its input {model_input.name!r} is served by several views: {remedy}.")
        (feature,) = found
        if feature.column in served.unservable:
            raise ModelRefused(
                model, f"feature {feature.name!r} has type {served.unservable[feature.column]}, which can't be served."
            )
        if not holds_every_value(feature.dtype, model_input.dtype):
            name = feast_name(feature.column)
            raise ModelRefused(
                model,
                f"its input {model_input.name!r} is {model_input.dtype}, but feature {name} is declared "
                f"{feature.dtype}, which can't be converted to it exactly. Train on the declared type, or change the "
                "declaration.",
            )
        features.append(msgspec.structs.replace(feature, input=model_input.name))
    if missing:
        raise MissingFeatures(model, service, missing, sorted(feature.name for feature in served.features))
    return features


def _request_types(model: str, fields: Sequence[tuple[str, pa.DataType]], filled: set[str]) -> dict[str, pa.DataType]:
    """Return request field of the service's on-demand views → its type."""
    needed: dict[str, pa.DataType] = {}
    for name, dtype in fields:
        if needed.setdefault(name, dtype) != dtype:
            raise ModelRefused(
                model,
                f"its on-demand views declare {name!r}, which comes with the request, once as "
                f"{needed[name]} and once as {dtype}: give one of them another name.",
            )
        if name in filled:
            raise ModelRefused(
                model,
                f"its input {name!r} comes from a feature view, and an on-demand view takes {name!r} from the "
                "request: give one of them another name.",
            )
    return needed


class _ServedFeatures:
    """Collects what projections of feature views serve, from their definitions.

    Raises:
        ModelRefused: there is no join key, or a key or a feature has a type that can't be served.
    """

    def __init__(self, model: str, projections: Sequence[Any], feast_views: Mapping[str, Any]) -> None:
        self.features: list[Feature] = []
        """Features, each with its own name as the input."""
        self.keys: dict[str, JoinKey] = {}
        self.unservable: dict[str, Any] = {}
        """Column of a feature with an unsupported type → Feast's type. A version is refused only if it needs one."""
        self.request_fields: list[tuple[str, pa.DataType]] = []
        """Request fields of on-demand views, with their types."""
        self.feast_views: dict[str, Any] = {}
        self.on_demand_views: dict[str, Any] = {}
        self._model = model
        self._views: dict[str, View] = {}
        self._read_on_demand: dict[str, list[str]] = {}
        """View → its columns that on-demand views read."""
        for projection in projections:
            name, view = projection.name_alias or projection.name, feast_views[projection.name]
            if not hasattr(view, "source_feature_view_projections"):
                ttl_s = view.ttl.total_seconds() if view.ttl else None
                keys = self._add_keys(view, projection.join_key_map)
                renamed = bool(projection.name_alias or projection.join_key_map)
                self._views[name] = View(name, (), ttl_s, keys, renamed)
                self.feast_views[name] = view
                self._add_features(projection, (name,))
                continue
            for request_source in view.source_request_sources.values():
                self.request_fields += [(field.name, _arrow_type(model, field)) for field in request_source.schema]
            sources = {each.name_alias or each.name: each for each in view.source_feature_view_projections.values()}
            for alias, source in sources.items():
                self._read_on_demand.setdefault(alias, []).extend(f"{alias}:{field.name}" for field in source.features)
                self._add_keys(feast_views[source.name], source.join_key_map)
            self.on_demand_views[name] = view.with_projection(projection)
            self._add_features(projection, tuple(sources), name)
        if not self.keys:
            raise ModelRefused(model, "its features have no entity with a join key, so there is nothing to look up.")

    def view(self, name: str) -> View:
        """Return a view that the model depends on, with the columns that the service or an on-demand view reads.

        Raises:
            ModelRefused: none of its own features is served.
        """
        columns = [each.column for each in self.features if each.views == (name,) and not each.on_demand]
        if not columns:
            raise ModelRefused(
                self._model,
                f"it reads view {name!r} only through an on-demand view, for which Feast does not report the age of a "
                f"row. Serve it with a feature service that has one feature of {name!r} itself.",
            )
        columns += self._read_on_demand.get(name, [])
        return msgspec.structs.replace(self._views[name], columns=tuple(dict.fromkeys(columns)))

    def _add_features(self, projection: Any, views: tuple[str, ...], on_demand_view: str | None = None) -> None:
        name = projection.name_alias or projection.name
        for field in projection.features:
            try:
                dtype = _arrow_type(self._model, field)
            except ModelRefused:
                self.unservable[f"{name}:{field.name}"] = field.dtype
                dtype = pa.null()
            self.features.append(Feature(field.name, f"{name}:{field.name}", dtype, views, on_demand_view))

    def _add_keys(self, view: Any, join_key_map: Mapping[str, str]) -> Keys:
        keys = {}
        for column in view.entity_columns:
            name = join_key_map.get(column.name, column.name)
            keys[column.name] = JoinKey(name, _key_type(self._model, name, column.dtype))
        if not keys or NO_ENTITY in keys:  # Feast removes its key from views that it has read (feast 0.67)
            return ((NO_ENTITY, JoinKey(NO_ENTITY, "string")),)
        self.keys |= {key.name: key for key in keys.values()}
        return tuple((name, keys[name]) for name in sorted(keys))


def _read_service(store: "FeatureStore", name: str) -> tuple["FeatureService", dict[str, Any]]:
    """Read the service and, by their names in the registry, all views that it or its on-demand views read."""
    from feast.errors import FeastObjectNotFoundException, FeatureServiceNotFoundException

    registry, project = store.registry, store.project
    try:
        service = registry.get_feature_service(name, project, allow_cache=True)
        views: dict[str, Any] = {}
        projections = list(service.feature_view_projections)
        for projection in projections:
            view = views[projection.name] = registry.get_any_feature_view(projection.name, project, allow_cache=True)
            projections += getattr(view, "source_feature_view_projections", {}).values()
    except FeatureServiceNotFoundException:
        known = sorted(each.name for each in registry.list_feature_services(project, allow_cache=True))
        raise FeatureServiceNotFound(name, known) from None
    except FeastObjectNotFoundException as error:
        raise FeatureStoreError(f"reading feature service {name!r}", error) from error
    except Exception as error:
        raise FeatureStoreError("reading its registry", error) from error
    return service, views


def _read_views(store: "FeatureStore", model: str) -> dict[str, Any]:
    """Read all views of a registry without feature services, sorted, because `feast apply` writes them in any order.

    Raises:
        ModelRefused: the registry has feature services, so one of them must be named.
    """
    registry, project = store.registry, store.project
    try:
        known = sorted(each.name for each in registry.list_feature_services(project, allow_cache=True))
        views = registry.list_all_feature_views(project, allow_cache=True)
    except Exception as error:
        raise FeatureStoreError("reading its registry", error) from error
    if known:
        raise ModelRefused(
            model,
            "it has no tag feast.feature_service. Tag it with the name of its Feast feature service (the registry has "
            f"{', '.join(known)}), or set SERVING_FEATURE_SERVICE.",
        )
    return {view.name: view for view in sorted(views, key=lambda view: view.name)}


def _project(model: str, wanted: Sequence[str], feast_views: Mapping[str, Any]) -> list[Any]:
    """Return projections of the views on the features with the wanted names, as `feature` or `view__feature`.

    Raises:
        MissingFeatures: no view has some of them.
    """
    taken: dict[str, list[Any]] = {}
    missing = dict.fromkeys(wanted)
    for name, view in feast_views.items():
        for field in view.features:
            names = {field.name, feast_name(f"{name}:{field.name}")}
            if names.intersection(wanted):
                taken.setdefault(name, []).append(field)
                missing = {each: None for each in missing if each not in names}
    if missing:
        known = {field.name for view in feast_views.values() for field in view.features}
        raise MissingFeatures(model, None, list(missing), sorted(known))
    for view in [feast_views[name] for name in taken]:  # for on-demand views, Feast reports no age of a row
        for source in getattr(view, "source_feature_view_projections", {}).values():
            taken.setdefault(source.name, source.features[:1])
    projections = []
    for name, fields in taken.items():
        projections.append(copy.copy(feast_views[name].projection))
        projections[-1].features = fields
    return projections


def _key_type(model: str, key: str, dtype: Any) -> KeyType:
    name = dtype.to_value_type().name
    if name not in KEY_TYPES:
        raise ModelRefused(model, f"join key {key!r} has type {name}; supported types: {', '.join(KEY_TYPES)}.")
    return KEY_TYPES[name]


def _arrow_type(model: str, field: Any) -> pa.DataType:
    from feast.types import from_feast_to_pyarrow_type

    try:
        return from_feast_to_pyarrow_type(field.dtype)
    except ValueError:
        raise ModelRefused(model, f"feature {field.name!r} has type {field.dtype}, which can't be served.") from None
