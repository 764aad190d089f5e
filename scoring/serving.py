"""A model version made ready to serve: resolved, loaded, linked to its features. Batch and online both start here."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from scoring.arrow.signature import Signature
from scoring.errors import ModelRefused
from scoring.features.feature_service import link_features
from scoring.features.model_features import ModelFeatures
from scoring.models.admission import validate
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model
from scoring.models.model_files import ModelFiles, fetch_model, load_signature, version_folder
from scoring.models.registry import FEATURE_SERVICE_TAG, REQUEST_INPUTS_TAG, ModelVersion, Registry
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class ServingModel(msgspec.Struct, frozen=True):
    """One exact model version and the features that feed it."""

    model: Model
    features: ModelFeatures
    files: ModelFiles | None = None
    """The version's files, where it was loaded to keep them."""


def resolve_version(registry: Registry, settings: Settings, pinned: int | None = None) -> ModelVersion:
    """The exact version to use: the pinned one, else what the alias names now. Ask once, then pass it on.

    Raises:
        RegistryError: it can't be told.
    """
    if pinned is not None:
        return registry.version(settings.model_name, pinned)
    return registry.resolve(settings.model_name, settings.model_alias)


def load_serving_model(
    registry: Registry, store: "FeatureStore", version: ModelVersion, settings: Settings, keep: Path | None = None
) -> ServingModel:
    """Load one version, link it to its features and admit it, all in this process.

    The API has it loaded on trial in a process of its own before (`trial_load`): a crash would end its service. Here it
    ends one batch run, which left the old output as it was. Its files go to the folder `keep`, or are forgotten.

    Raises:
        RegistryError: its files can't be fetched.
        NoRoom: this machine has none for them.
        ModelRefused: it can't be served; the text says why.
        FeatureStoreError: the Feast registry can't be read or lacks its feature service.
    """
    with version_folder() as folder:
        files = fetch_model(registry, version, keep or folder, LoadingRules.from_settings(settings))
        features = link_version(store, version, files.signature, settings)
        model, _ = validate(files)
    return ServingModel(model, features, files if keep else None)


def link_registered_version(
    registry: Registry, store: "FeatureStore", version: ModelVersion, settings: Settings
) -> ModelFeatures:
    """The features of one version, without fetching the model itself.

    Raises:
        RegistryError, ModelRefused, FeatureStoreError: as `load_serving_model`.
    """
    return link_version(store, version, load_signature(registry, version), settings)


def link_version(
    store: "FeatureStore", version: ModelVersion, signature: Signature, settings: Settings
) -> ModelFeatures:
    """The features of a version with this signature: the service by its tag, else by the setting.

    Raises:
        ModelRefused: neither names a service, an input is not served, or an impute value does not fit its input.
        FeatureStoreError: the Feast registry can't be read or lacks the service.
    """
    service = version.tags.get(FEATURE_SERVICE_TAG) or settings.feature_service
    if not service:
        raise ModelRefused(
            str(version),
            f"it has no tag {FEATURE_SERVICE_TAG}. Tag it with the name of its Feast feature service, or set "
            "SERVING_FEATURE_SERVICE.",
        )
    tag = version.tags.get(REQUEST_INPUTS_TAG)
    request_inputs = (
        settings.request_inputs if tag is None else tuple(name.strip() for name in tag.split(",") if name.strip())
    )
    _check_impute_values(version, signature, settings)
    return link_features(store, str(version), service, signature, request_inputs)


def _check_impute_values(version: ModelVersion, signature: Signature, settings: Settings) -> None:
    types = {column.name: column.dtype for column in signature.inputs}
    for name, value in settings.impute_values.items():
        if name not in types:
            raise ModelRefused(str(version), f"SERVING_IMPUTE_VALUES names {name!r}, which is none of its inputs.")
        try:
            if isinstance(value, bool) and not pa.types.is_boolean(types[name]):
                raise pa.ArrowTypeError("a truth value is no number")  # pyarrow 25 makes 1.0 of it
            if isinstance(value, float) and pa.types.is_integer(types[name]) and not value.is_integer():
                raise pa.ArrowTypeError("a fraction is no whole number")  # pyarrow 25 cuts it off
            pa.scalar(value, types[name])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise ModelRefused(
                str(version),
                f"SERVING_IMPUTE_VALUES has {value!r} for its input {name!r}, which is {types[name]}.",
            ) from None
