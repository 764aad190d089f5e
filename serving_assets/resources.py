"""What assets and sensors work with: settings, model registry and feature store, each opened at its first use."""

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
    """The Dagster resource `serving`. A process makes one and reads its environment once, when a run or tick needs it.

    A code location with a wrong setting therefore still loads, and says what is wrong where somebody reads it.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Remember where the settings will come from; nothing is read yet."""
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
        """What joins and scores; it keeps its Spark session, if it has one.

        Raises:
            SettingsError: it is not installed.
        """
        return choose_engine(self.settings)

    def open_feature_store(self) -> "FeatureStore":
        """The Feast store as it is configured now, with no cached registry of an earlier run.

        Raises:
            FeatureStoreError: it is not configured, or wrongly.
        """
        return open_feature_store(self.settings)
