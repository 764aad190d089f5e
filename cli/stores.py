"""The registry and the feature store that subcommands work on, and their slow imports."""

from typing import TYPE_CHECKING

import msgspec

from cli.configuration import read_settings
from cli.display import Progress

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.models.registry import MlflowRegistry
    from scoring.settings import Settings


class Stores(msgspec.Struct, frozen=True):
    """What the settings name."""

    settings: "Settings"
    registry: "MlflowRegistry"
    features: "FeatureStore"


def open_stores(shown: Progress) -> Stores:
    """Open the registry and the feature store of the current subcommand's settings.

    Raises:
        SettingsError: a setting is missing or invalid. This is known before the imports, which take seconds.
        FeatureStoreError: the feature repository's configuration is missing or invalid.
    """
    settings = read_settings()
    shown.stage("Importing Feast and MLflow")
    from scoring.features.feature_store import open_feature_store
    from scoring.imports import collector_paused, import_model_libraries
    from scoring.models.registry import MlflowRegistry

    with collector_paused():
        import_model_libraries()
        return Stores(settings, MlflowRegistry.from_settings(settings), open_feature_store(settings))
