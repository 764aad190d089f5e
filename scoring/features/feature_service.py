"""Finding a model's inputs in its feature service: names, types, join keys, times to live. Once a version."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from scoring.arrow.signature import NEUTRAL, Signature, holds_every_value
from scoring.errors import FeatureServiceNotFound, FeatureStoreError, MissingFeatures, ModelRefused
from scoring.feast_plugins.join_keys import KEY_TYPES, JoinKey, KeyType
from scoring.features.model_features import Feature, ModelFeatures, View

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore


class _Served(msgspec.Struct, frozen=True):
    name: str
    column: str
    dtype: pa.DataType
    views: tuple[str, ...]
    on_demand_view: str | None = None
    request_fields: dict[str, pa.DataType] = {}


class _Service(msgspec.Struct, frozen=True):
    join_keys: tuple[JoinKey, ...]
    features: tuple[_Served, ...]
    ttl_s: dict[str, float | None]
    read_on_demand: dict[str, tuple[str, ...]]
    """View → its columns that on-demand views of the service read."""


def link_features(
    store: "FeatureStore", model: str, service: str, signature: Signature, request_inputs: Sequence[str]
) -> ModelFeatures:
    """Find each input of the signature in the feature service, or among the declared request-time inputs.

    An input is named as the feature (`conv_rate`) or, where two views share that name, with its view
    (`driver_stats__conv_rate`).

    Args:
        store: the Feast store, whose registry (cached copy) is read.
        model: `name/version`, for the errors.
        service: name of the feature service.
        signature: the model's.
        request_inputs: inputs that a request brings itself.

    Raises:
        FeatureServiceNotFound: the registry has no such service.
        MissingFeatures: inputs that the service does not serve, all listed.
        ModelRefused: an ambiguous name, a type that would lose values, a key that can't be asked for.
        FeatureStoreError: the Feast registry can't be read.
    """
    served = _read_service(store, model, service)
    by_name: dict[str, list[_Served]] = {}
    for feature in served.features:
        by_name.setdefault(feature.name, []).append(feature)
        by_name.setdefault(feature.column, []).append(feature)

    features, missing = [], []
    for model_input in signature.inputs:
        if model_input.name in request_inputs:
            continue
        found = by_name.get(model_input.name, [])
        if not found:
            missing.append(model_input.name)
            continue
        if len(found) > 1:
            options = ", ".join(feature.column for feature in found)
            raise ModelRefused(
                model, f"its input {model_input.name!r} is served by several views: name it one of {options}."
            )
        if not holds_every_value(found[0].dtype, model_input.dtype):
            raise ModelRefused(
                model,
                f"its input {model_input.name!r} is {model_input.dtype}, but feature {found[0].column} is declared "
                f"{found[0].dtype}, whose values that can't hold. Train on the declared type, or declare the other.",
            )
        features.append(_feature(model_input.name, found[0]))
    if missing:
        raise MissingFeatures(model, service, missing, sorted(feature.name for feature in served.features))

    read = {feature.column for feature in features}
    used = {view for feature in served.features if feature.column in read for view in feature.views}
    needed = _request_fields(model, served, {feature.input for feature in features})
    model_request_inputs = [name for name in signature.names if name in request_inputs]
    return ModelFeatures(
        service=service,
        join_keys=served.join_keys,
        features=tuple(features),
        views=tuple(_view(model, served, name) for name in sorted(used)),
        request_inputs=(*model_request_inputs, *sorted(needed.keys() - set(model_request_inputs))),
        signature=signature,
        request_types={name: dtype for name, dtype in needed.items() if dtype in NEUTRAL},
    )


def _request_fields(model: str, served: _Service, filled: set[str]) -> dict[str, pa.DataType]:
    """What on-demand views of the service take from a request → its type."""
    needed: dict[str, pa.DataType] = {}
    for feature in served.features:
        for name, dtype in feature.request_fields.items():
            if needed.setdefault(name, dtype) != dtype:
                raise ModelRefused(
                    model,
                    f"on-demand views of its feature service declare {name!r}, which comes with the request, once as "
                    f"{needed[name]} and once as {dtype}: give one of them another name.",
                )
            if name in filled:
                raise ModelRefused(
                    model,
                    f"its input {name!r} comes from a feature view, and an on-demand view takes {name!r} from the "
                    "request: give one of them another name.",
                )
    return needed


def _feature(name: str, served: _Served) -> Feature:
    return Feature(name, served.column, served.dtype, served.views, served.on_demand_view)


def _read_service(store: "FeatureStore", model: str, name: str) -> _Service:
    from feast.errors import FeatureServiceNotFoundException
    from feast.on_demand_feature_view import OnDemandFeatureView

    try:
        service: FeatureService = store.registry.get_feature_service(name, store.project, allow_cache=True)
    except FeatureServiceNotFoundException:
        known = sorted(each.name for each in store.registry.list_feature_services(store.project, allow_cache=True))
        raise FeatureServiceNotFound(name, known) from None
    except Exception as error:
        raise FeatureStoreError("reading its registry", error) from error

    keys: dict[str, JoinKey] = {}
    features: list[_Served] = []
    ttl_s: dict[str, float | None] = {}
    read: dict[str, tuple[str, ...]] = {}
    for projection in service.feature_view_projections:
        view = _read_view(store, name, projection.name)
        prefix = projection.name_alias or projection.name
        sources: tuple[str, ...] = (prefix,)
        fields: dict[str, pa.DataType] = {}
        on_demand_view = None
        if isinstance(view, OnDemandFeatureView):
            on_demand_view = prefix
            projections = view.source_feature_view_projections.values()
            sources = tuple(source.name_alias or source.name for source in projections)
            asked_for = (field for source in view.source_request_sources.values() for field in source.schema)
            fields = {field.name: _arrow_type(model, field) for field in asked_for}
            for source in projections:
                alias = source.name_alias or source.name
                read[alias] = (*read.get(alias, ()), *(f"{alias}__{field.name}" for field in source.features))
                keys |= _join_keys(model, _read_view(store, name, source.name), source.join_key_map)
        else:
            ttl_s[prefix] = view.ttl.total_seconds() if view.ttl else None
            keys |= _join_keys(model, view, projection.join_key_map)
        features.extend(
            _Served(field.name, f"{prefix}__{field.name}", _arrow_type(model, field), sources, on_demand_view, fields)
            for field in projection.features
        )
    if not keys:
        raise ModelRefused(
            model, f"feature service {name!r} has no entity with a join key, so nothing can be asked for."
        )
    return _Service(tuple(keys.values()), tuple(features), ttl_s, read)


def _read_view(store: "FeatureStore", service: str, name: str) -> Any:
    from feast.errors import FeastObjectNotFoundException

    try:
        return store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    except FeastObjectNotFoundException as error:
        raise FeatureStoreError(f"reading feature service {service!r}", error) from error


def _join_keys(model: str, view: Any, join_key_map: Mapping[str, str]) -> dict[str, JoinKey]:
    keys = {}
    for column in view.entity_columns:
        name = join_key_map.get(column.name, column.name)
        if name != "__dummy_id":  # Feast's key of a view without entities
            keys[name] = JoinKey(name, _key_type(model, name, column.dtype))
    return keys


def _view(model: str, served: _Service, name: str) -> View:
    stored = (feature for feature in served.features if feature.on_demand_view is None)
    columns = tuple(feature.column for feature in stored if feature.views == (name,))
    if not columns:
        raise ModelRefused(
            model,
            f"it reads view {name!r} only through an on-demand view, and then Feast does not tell how old a row is. "
            f"Add one feature of {name!r} itself to the feature service.",
        )
    columns = tuple(dict.fromkeys((*columns, *served.read_on_demand.get(name, ()))))
    return View(name, columns, served.ttl_s.get(name))


def _key_type(model: str, key: str, dtype: Any) -> KeyType:
    name = dtype.to_value_type().name
    if name not in KEY_TYPES:
        raise ModelRefused(model, f"join key {key!r} has type {name}; these can be asked for: {', '.join(KEY_TYPES)}.")
    return KEY_TYPES[name]


def _arrow_type(model: str, field: Any) -> pa.DataType:
    from feast.types import from_feast_to_pyarrow_type

    try:
        return from_feast_to_pyarrow_type(field.dtype)
    except ValueError:
        raise ModelRefused(model, f"feature {field.name!r} has type {field.dtype}, which can't be served.") from None
