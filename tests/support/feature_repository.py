"""Feast repositories of a test's own: one file of definitions, and a configuration for each kind of store."""

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

ASOF = "scoring.feast_plugins.offline_store.AsofOfflineStore"
SQLITE = "{type: sqlite, path: data/NAME.online.db}"
CONFIGURATION = """
project: {project}
provider: local
registry: {{path: data/{name}.registry.db, enable_online_feature_view_versioning: {versioned}}}
online_store: {online}
offline_store: {{type: {offline}}}
batch_engine: {{type: {engine}}}
entity_key_serialization_version: 3
"""


def write_definitions(folder: Path, definitions: str) -> None:
    """Make `folder` a Feast repository with these definitions."""
    (folder / "data").mkdir()
    (folder / "definitions.py").write_text(definitions)


def open_repository(
    folder: Path,
    name: str = "feature_store",
    *,
    project: str = "tests",
    online: str = SQLITE,
    offline: str = ASOF,
    engine: str = "local",
    bulk: bool = True,
    apply: bool = True,
) -> "FeatureStore":
    """A store on the definitions in `folder`, configured in `<name>.yaml`, with a registry of its own.

    Args:
        folder: the repository.
        name: of its configuration.
        project: Feast's name for it.
        online: section `online_store` of the configuration; NAME in it becomes `name`.
        offline: type of the offline store.
        engine: type of the batch engine.
        bulk: whether the online store may be read in bulk; else it has versioned views, which only Feast reads.
        apply: whether to apply the definitions.
    """
    from scoring.features.feature_store import apply_definitions, open_feature_store

    online = online.replace("NAME", name)
    versioned = str(not bulk).lower()
    (folder / f"{name}.yaml").write_text(
        CONFIGURATION.format(
            name=name, project=project, online=online, offline=offline, engine=engine, versioned=versioned
        )
    )
    store = open_feature_store(Settings(model_name="m", feature_repo=folder, feature_store_yaml=f"{name}.yaml"))
    if apply:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            apply_definitions(store)
    return store
