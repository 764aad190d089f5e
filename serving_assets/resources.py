"""What assets and sensors use: settings, model registry, feature store and engine, each opened at its first use."""

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scoring.engine import Engine, choose_engine
from scoring.features.feature_store import open_feature_store
from scoring.models.registry import MlflowRegistry, Registry
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class Serving:
    """The Dagster resource `serving`. A process reads its environment once, when a run or tick needs it.

    A code location with a wrong setting therefore still loads, and each run and tick reports the setting.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read nothing yet; `environment` will be read for the settings."""
        self._environment = environment

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings.

        Raises:
            SettingsError: one is wrong or missing.
        """
        return Settings.from_environment(self._environment)

    @functools.cached_property
    def registry(self) -> Registry:
        """The model registry; it keeps its connections."""
        return MlflowRegistry.from_settings(self.settings)

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine that joins and scores; it keeps its Spark session, if it has one.

        Raises:
            SettingsError: its packages are not installed.
        """
        return choose_engine(self.settings)

    def open_feature_store(self) -> "FeatureStore":
        """Open the Feast store as it is configured now, without a registry cached by an earlier run.

        Raises:
            FeatureStoreError: its configuration is missing or wrong.
        """
        return open_feature_store(self.settings)
