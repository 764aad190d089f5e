"""Shared resources of assets and sensors: settings, model registry, feature store and engine, opened at first use."""

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scoring.engine import Engine, choose_engine
from scoring.features.feature_store import open_feature_store
from scoring.models.registry import MlflowRegistry
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class Serving:
    """The Dagster resource `serving`. It reads the environment once per process, when a run or tick needs it.

    Therefore a code location with an invalid setting loads, and each run and tick reports the setting.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Store `environment`; the first use of `settings` reads it."""
        self._environment = environment

    @functools.cached_property
    def settings(self) -> Settings:
        """Return the settings.

        Raises:
            SettingsError: a setting is missing or invalid.
        """
        return Settings.from_environment(self._environment)

    @functools.cached_property
    def registry(self) -> MlflowRegistry:
        """Return the model registry, which keeps its connections open."""
        return MlflowRegistry.from_settings(self.settings)

    @functools.cached_property
    def engine(self) -> Engine:
        """Return the engine that joins and scores. A Spark engine keeps its session.

        Raises:
            SettingsError: the engine's packages are not installed.
        """
        return choose_engine(self.settings)

    def open_feature_store(self) -> "FeatureStore":
        """Open the Feast store with its current configuration, without a registry cached by an earlier run.

        Raises:
            FeatureStoreError: its configuration is missing or invalid.
        """
        return open_feature_store(self.settings)
