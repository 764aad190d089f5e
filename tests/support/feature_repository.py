"""Feast repositories for a single test: one file of definitions, and a configuration per kind of store."""

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
    """Open a store with the definitions in `folder`, configured in `<name>.yaml`, with its own registry.

    Args:
        folder: the repository.
        name: name of its configuration.
        project: name of the Feast project.
        online: section `online_store` of the configuration; NAME in it is replaced by `name`.
        offline: type of the offline store.
        engine: type of the batch engine.
        bulk: whether the online store can be read in bulk; otherwise it has versioned views, which only Feast can read.
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
