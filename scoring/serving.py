"""Loads a model version and links it to its features, for batch and online."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from scoring.arrow.signature import EVENT_TIMESTAMP, OUTPUT_COLUMNS, Signature
from scoring.errors import ModelRefused
from scoring.features.feature_service import link_features
from scoring.features.model_features import ModelFeatures
from scoring.models.admission import validate
from scoring.models.flavors.flavor import check_files
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model
from scoring.models.model_files import ModelFiles, fetch_description, fetch_model, load_signature, version_folder
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion, Registry
from scoring.models.tags import FEATURE_SERVICE_TAG, OVERRIDABLE_TAG, REQUEST_INPUTS_TAG
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class ServingModel(msgspec.Struct, frozen=True):
    """One exact model version and the features that feed it."""

    model: Model
    features: ModelFeatures
    files: ModelFiles | None = None
    """The version's files, if they were kept."""


def resolve_version(registry: Registry, settings: Settings, pinned: int | None = None) -> ModelVersion:
    """Return the exact version to use: the pinned one, or the one that the alias names now. Call it once per run.

    Raises:
        RegistryError: the registry does not respond, or has no such version or alias.
    """
    if pinned is not None:
        return registry.version(settings.model_name, pinned)
    return registry.resolve(settings.model_name, settings.model_alias)


def load_serving_model(
    registry: Registry, store: "FeatureStore", version: ModelVersion, settings: Settings, keep: Path | None = None
) -> ServingModel:
    """Load one version, link it to its features and admit it, all in this process.

    The API loads a version in a trial process first (`trial_load`), because a crash would end the service. Here a crash
    ends one batch run, and the old output is unchanged. The files are copied to the folder `keep`, or else deleted.

    Raises:
        RegistryError: the files can't be fetched.
        NoRoom: this machine has no room for them.
        ModelRefused: the version can't serve.
        FeatureStoreError: the Feast registry can't be read or lacks the feature service.
    """
    with version_folder() as folder:
        files = fetch_model(registry, version, keep or folder, LoadingRules.from_settings(settings))
        features = link_version(store, version, files.signature, settings)
        model, _ = validate(files)
        check_output_names(version, features, model.outputs)
    return ServingModel(model, features, files if keep else None)


def link_registered_version(
    registry: Registry, store: "FeatureStore", version: ModelVersion, settings: Settings
) -> ModelFeatures:
    """Return the features of one version, without fetching the model itself.

    Raises:
        RegistryError, ModelRefused, FeatureStoreError: as `load_serving_model`.
    """
    return link_version(store, version, load_signature(registry, version), settings)


def check_registered_version(
    registry: Registry, store: "FeatureStore", version: ModelVersion, settings: Settings
) -> None:
    """Check the library, format and features of one version, without fetching the model itself.

    Raises:
        RegistryError, NoRoom, ModelRefused, FeatureStoreError: as `load_serving_model`.
    """
    with version_folder() as folder:
        files = fetch_description(registry, version, folder, LoadingRules.from_settings(settings))
        link_version(store, version, files.signature, settings)
        check_files(files)


def link_version(
    store: "FeatureStore", version: ModelVersion, signature: Signature, settings: Settings
) -> ModelFeatures:
    """Return the features of a version with this signature. Its tag, or else the setting, names the feature service.

    Raises:
        ModelRefused: neither names one of the registry's feature services, an input is not served, an input has the
            name of an output column, an impute value does not fit its input, or an overridable input is not a feature
            that only the model reads.
        FeatureStoreError: the Feast registry can't be read or lacks the service.
    """
    service = version.tags.get(FEATURE_SERVICE_TAG) or settings.feature_service or None
    request_inputs = _names_in(version.tags.get(REQUEST_INPUTS_TAG), settings.request_inputs)
    overridable = _names_in(version.tags.get(OVERRIDABLE_TAG), settings.overridable_features)
    _check_impute_values(version, signature, settings)
    features = link_features(store, str(version), service, signature, request_inputs)
    _check_names(version, features)
    _check_overridable(version, features, overridable)
    return msgspec.structs.replace(features, overridable=overridable)


def check_online(version: ModelVersion, features: ModelFeatures) -> None:
    """Check that all features of a version can be in the online store.

    Raises:
        ModelRefused: a feature view never is.
    """
    offline = sorted(view.name for view in features.views if not features.feast.views[view.name].online)
    if offline:
        raise ModelRefused(
            str(version),
            f"it reads feature view {', '.join(map(repr, offline))}, which has online=False, so that Feast never "
            "copies it to the online store. Define it with online=True, apply the definitions and materialize it.",
        )


def _check_names(version: ModelVersion, features: ModelFeatures) -> None:
    """Refuse names that two columns of a batch output would share. DuckDB's join compares them case-insensitively."""
    computed = {feature.input for feature in features.features}
    in_request = tuple(dict.fromkeys((*features.request_columns, EVENT_TIMESTAMP)))
    for name in dict.fromkeys((*features.signature.names, *features.request_columns)):
        if _is_among(name, OUTPUT_COLUMNS):
            taken = f"a column that scoring adds to the output ({', '.join(OUTPUT_COLUMNS)})"
        elif name in computed and _is_among(name, in_request):
            taken = f"a column of each request ({', '.join(in_request)})"
        else:
            continue
        what = "input" if name in features.signature.names else "request column"
        remedy = "rename it in the model, or in the feature definitions."
        if name in computed:
            remedy = f"rename it in the model, for example to the name of its view and feature, view__{name}."
        raise ModelRefused(str(version), f"its {what} {name!r} has the name of {taken}: {remedy}")


def _names_in(tag: str | None, setting: tuple[str, ...]) -> tuple[str, ...]:
    return setting if tag is None else tuple(name.strip() for name in tag.split(",") if name.strip())


def _check_overridable(version: ModelVersion, features: ModelFeatures, overridable: Sequence[str]) -> None:
    columns = {feature.input: feature.column for feature in features.features}
    sources = [
        f"{source.name_to_use()}:{field.name}"
        for view in features.feast.on_demand_views
        for source in view.source_feature_view_projections.values()
        for field in source.features
    ]
    for name in overridable:
        problem = f"its tag {OVERRIDABLE_TAG}, or else SERVING_OVERRIDABLE_FEATURES, names {name!r}, which "
        if name not in columns:
            names = ", ".join(columns) or "none"
            raise ModelRefused(str(version), f"{problem}is not an input that a feature fills ({names}).")
        if columns[name] in sources:
            problem += "an on-demand view reads: what the view computes from it would not change."
            raise ModelRefused(str(version), problem)


def check_output_names(version: ModelVersion, features: ModelFeatures, outputs: Outputs) -> None:
    """Check that no input or request column has the name of one of several outputs, compared case-insensitively.

    Raises:
        ModelRefused: one has.
    """
    for name in dict.fromkeys((*features.signature.names, *features.request_columns)):
        if not outputs.single and _is_among(name, outputs.names):
            what = "input" if name in features.signature.names else "request column"
            problem = f"its {what} {name!r} has the name of one of its outputs in a batch output"
            raise ModelRefused(str(version), f"{problem}: rename it in the model, or in the feature definitions.")


def _is_among(name: str, names: Sequence[str]) -> bool:
    return name.casefold() in {each.casefold() for each in names}


def _check_impute_values(version: ModelVersion, signature: Signature, settings: Settings) -> None:
    types = {column.name: column.dtype for column in signature.inputs}
    for name, value in settings.impute_values.items():
        if name not in types:
            raise ModelRefused(str(version), f"SERVING_IMPUTE_VALUES names {name!r}, which is not one of its inputs.")
        try:
            if isinstance(value, bool) and not pa.types.is_boolean(types[name]):
                raise pa.ArrowTypeError("a boolean is not a number")  # pyarrow 25 converts it to 1.0
            if isinstance(value, float) and pa.types.is_integer(types[name]) and not value.is_integer():
                raise pa.ArrowTypeError("a fraction is not an integer")  # pyarrow 25 truncates it
            pa.scalar(value, types[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise ModelRefused(
                str(version),
                f"SERVING_IMPUTE_VALUES gives {value!r} for its input {name!r}, whose type is {types[name]}.",
            ) from None
