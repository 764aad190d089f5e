"""Reads a registry that consists of a SQLite database and of files, without MLflow.

Opening the database with MLflow takes 60 MiB of memory, and a third of the API's CPU time until it is ready.
"""

import contextlib
import os
import shutil
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec

from scoring.errors import AliasNotSet, ModelNotRegistered, ModelRefused, RegistryUnreachable, VersionNotFound
from scoring.models.registry import FEATURE_SERVICE_TAG, MlflowRegistry, ModelVersion, Registry
from scoring.settings import Settings

# The schema of MLflow 3.17, in its table alembic_version. MLflow itself reads databases with another one.
SCHEMA = "dc11669786a5"
SQLITE = "sqlite:///"
# MLflow computes the version of this alias.
LATEST = "latest"
BUSY_TIMEOUT_S = 5.0

IS_MODEL = "SELECT 1 FROM registered_models WHERE workspace = 'default' AND name = ?"
ALIAS = "SELECT version FROM registered_model_aliases WHERE workspace = 'default' AND name = ? AND alias = ?"
VERSION = """
    SELECT creation_time, run_id, coalesce(nullif(storage_location, ''), source, '') FROM model_versions
    WHERE workspace = 'default' AND name = ? AND version = ? AND current_stage != 'Deleted_Internal'
"""
TAGS = "SELECT key, value FROM model_version_tags WHERE workspace = 'default' AND name = ? AND version = ?"
RUN_TAG = "SELECT key, value FROM tags WHERE run_uuid = ? AND key = ? AND value != ''"


class _OnlyMlflow(Exception):
    """Only MLflow can answer."""


class _Found(msgspec.Struct, frozen=True):
    version: ModelVersion
    location: str
    """The address of its files."""


class LocalRegistry:
    """A `Registry` that reads a SQLite database and files, and asks MLflow about all others."""

    def __init__(self, uri: str) -> None:
        """Open nothing yet."""
        self._uri = uri
        self._mlflow = MlflowRegistry(uri, uri)

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """See `Registry.resolve`."""
        try:
            with self._database() as database:
                if alias.lower() == LATEST:
                    raise _OnlyMlflow
                for (version,) in database.execute(ALIAS, (name, alias)):
                    return self._find(database, name, version).version
                self._check_registered(database, name)
        except _OnlyMlflow:
            return self._mlflow.resolve(name, alias)
        raise AliasNotSet(name, alias)

    def version(self, name: str, version: int) -> ModelVersion:
        """See `Registry.version`."""
        try:
            with self._database() as database:
                return self._find(database, name, version).version
        except _OnlyMlflow:
            return self._mlflow.version(name, version)

    def size(self, model: ModelVersion) -> int:
        """See `Registry.size`."""
        try:
            files = self._location(model)
            return sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
        except _OnlyMlflow:
            return self._mlflow.size(model)
        except OSError as error:
            raise RegistryUnreachable(self._uri, error) from error

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """See `Registry.download`."""
        try:
            source = self._location(model) / file
            if not source.exists():
                raise ModelRefused(str(model), "its files are no longer in the artifact store.")
            if source.is_file():
                return Path(shutil.copy2(source, destination / source.name))
            return Path(shutil.copytree(source, destination / source.name))
        except _OnlyMlflow:
            return self._mlflow.download(model, destination, file)
        except (OSError, shutil.Error) as error:
            raise RegistryUnreachable(self._uri, error) from error

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Provide one state of the database. Raises _OnlyMlflow or RegistryUnreachable."""
        path = Path(self._uri.removeprefix(SQLITE)).absolute()
        if not path.exists():
            raise _OnlyMlflow
        try:
            opened = sqlite3.connect(f"{path.as_uri()}?mode=ro", BUSY_TIMEOUT_S, isolation_level=None, uri=True)
            with contextlib.closing(opened) as database:
                database.execute("BEGIN")
                tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
                if not tables or database.execute("SELECT * FROM alembic_version").fetchall() != [(SCHEMA,)]:
                    raise _OnlyMlflow
                yield database
        except sqlite3.Error as error:
            raise RegistryUnreachable(self._uri, error) from error

    def _find(self, database: sqlite3.Connection, name: str, version: int) -> _Found:
        found = database.execute(VERSION, (name, version)).fetchone()
        if found is None:
            self._check_registered(database, name)
            raise VersionNotFound(name, version)
        created_ms, run_id, location = found
        tags = dict(database.execute(TAGS, (name, version)))
        tags = dict(database.execute(RUN_TAG, (run_id, FEATURE_SERVICE_TAG))) | tags
        return _Found(ModelVersion(name, version, tags, created_ms or 0), location)

    def _check_registered(self, database: sqlite3.Connection, name: str) -> None:
        if database.execute(IS_MODEL, (name,)).fetchone() is None:
            raise ModelNotRegistered(name, self._uri)

    def _location(self, model: ModelVersion) -> Path:
        with self._database() as database:
            address = self._find(database, model.name, model.version).location
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in {"", "file"} or parts.netloc or not parts.path.startswith("/"):
            raise _OnlyMlflow
        return Path(urllib.request.url2pathname(parts.path) if parts.scheme else address)


def registry_of(settings: Settings) -> Registry:
    """Return the registry that the settings name, for reading with the least memory."""
    uri = settings.registry_uri
    local = uri.startswith(SQLITE) and "?" not in uri and uri == settings.mlflow_tracking_uri
    if local and not os.environ.get("MLFLOW_WORKSPACE"):
        return LocalRegistry(uri)
    return MlflowRegistry.from_settings(settings)
