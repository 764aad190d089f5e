"""Where the model version that serves comes from: what should serve now, and how it is made ready to."""

from typing import TYPE_CHECKING, Protocol

import msgspec
import pyarrow as pa

from api.scorer import NEUTRAL, OnlineScorer, Scorer
from scoring.errors import FeatureStoreError, ModelRefused, PredictionFailed
from scoring.feature_store import freeze_definitions, open_feature_store, read_definitions
from scoring.model import load_model
from scoring.predict import Policy
from scoring.registry import ModelVersion, Registry
from scoring.serving import ServingModel, link_version, resolve_version
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class Target(msgspec.Struct, frozen=True):
    """What should serve: the version that the alias names, on the feature definitions as they are."""

    version: ModelVersion
    definitions: str
    """Hash of the feature definitions."""


class Loader(Protocol):
    """Where scorers come from. Called from one thread at a time."""

    def look(self) -> Target:
        """What should serve now.

        Raises:
            RegistryError, FeatureStoreError: it can't be told.
        """

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """A scorer for `target`, beside `current`, which serves on.

        Raises:
            RegistryError: its files can't be fetched.
            ModelRefused, FeatureStoreError: it can't serve; the text says why.
        """


class RegistryLoader:
    """A `Loader` that follows the alias in a model registry and the definitions in a Feast registry."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        """Remember where to look; nothing is opened before the first look."""
        self._settings = settings
        self._registry = registry
        self._policy = Policy.from_settings(settings)
        self._watched: FeatureStore | None = None

    def look(self) -> Target:
        """See `Loader.look`."""
        version = resolve_version(self._registry, self._settings)
        store = self._open()
        try:
            store.refresh_registry()
            definitions = read_definitions(store).hash
        except Exception as error:  # every Feast registry raises its own kinds
            raise FeatureStoreError("reading its registry", error) from error
        return Target(version, definitions)

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """See `Loader.load`. Only the definitions changed: the model that is loaded already is linked to them."""
        store = freeze_definitions(self._open())
        if isinstance(current, OnlineScorer) and current.version == target.version:
            model = current.model
        else:
            model = load_model(self._registry, target.version, self._settings)
        features = link_version(store, target.version, model.signature, self._settings)
        serving = ServingModel(model, features)
        admit(serving)
        return OnlineScorer(serving, store, self._policy)

    def _open(self) -> "FeatureStore":
        if self._watched is None:
            self._watched = open_feature_store(self._settings)
        return self._watched


def admit(serving: ServingModel) -> None:
    """Nothing, if the model gives one number for a made-up feature vector; that also warms it.

    Raises:
        ModelRefused: its output is something else.
    """
    columns = [pa.array([NEUTRAL[column.dtype]], column.dtype) for column in serving.features.signature.inputs]
    try:
        serving.model.predict(pa.Table.from_arrays(columns, schema=serving.features.signature.schema))
    except PredictionFailed as error:
        # A model may rightly raise on made-up values (a category that it never saw), but not on its own output's shape.
        if error.__cause__ is None:
            raise ModelRefused(str(serving.model.version), str(error)) from error
