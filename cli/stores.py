"""The registry and the feature store that subcommands work on, and their slow imports."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cli.configuration import configuration
from cli.display import Progress

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.models.registry import MlflowRegistry
    from scoring.serving import ServingModel
    from scoring.settings import Settings


class Stores(NamedTuple):
    """What most subcommands work on."""

    settings: "Settings"
    registry: "MlflowRegistry"
    store: "FeatureStore"


def open_registry(shown: Progress, *, to_load: bool = True) -> "tuple[Settings, MlflowRegistry]":
    """Return the current subcommand's settings, and a client of their model registry.

    `to_load` also imports what loads models: in this order, that takes the least time.

    Raises:
        ArgumentError: a setting is missing or invalid. This is known before the imports, which take seconds.
    """
    _, settings = configuration()
    shown.stage("Importing MLflow")
    from scoring.imports import import_model_libraries
    from scoring.models.registry import MlflowRegistry

    if to_load:
        import_model_libraries()
    return settings, MlflowRegistry.from_settings(settings)


def open_features(settings: "Settings") -> "FeatureStore":
    """Open the Feast store. Raises as `open_feature_store`."""
    from scoring.features.feature_store import open_feature_store
    from scoring.imports import collector_paused

    with collector_paused():
        return open_feature_store(settings)


def open_stores(shown: Progress) -> Stores:
    """Open both. Raises as `open_registry` and `open_features`."""
    settings, registry = open_registry(shown)
    shown.stage("Importing Feast")
    return Stores(settings, registry, open_features(settings))


def load_version(stores: Stores, version: int | None, keep: Path | None = None) -> "ServingModel":
    """Load and admit one version, by default the alias's. The folder `keep` gets its files.

    Raises:
        ServingError: as `resolve_version` and `load_serving_model`.
    """
    from scoring.imports import collector_paused
    from scoring.serving import load_serving_model, resolve_version

    settings, registry, store = stores
    with collector_paused():  # with a database as the registry, most of MLflow's server is imported
        found = resolve_version(registry, settings, version)
        return load_serving_model(registry, store, found, settings, keep)
