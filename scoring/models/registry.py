"""Client of the MLflow model registry: resolves a name and an alias to one exact version, and fetches its files."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from scoring.errors import (
    AliasNotSet,
    ModelNotRegistered,
    ModelRefused,
    RegistryUnreachable,
    VersionNotFound,
)
from scoring.files.atomic import scratch_folder
from scoring.imports import collector_paused, import_feast, import_mlflow
from scoring.models.tags import FEATURE_SERVICE_TAG
from scoring.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
    from mlflow.entities.model_registry import RegisteredModel

# MLflow's error codes for something that does not exist. Its database store has the second one for aliases (3.17).
MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}

Result = TypeVar("Result")


class ModelVersion(msgspec.Struct, frozen=True):
    """One registered version, with its properties when it was resolved."""

    name: str
    version: int
    tags: dict[str, str] = {}
    """The version's own tags. The feature service comes from its training run if the version has no such tag."""
    created_ms: int = 0
    """When it was registered, in milliseconds since 1970. A deleted model that is registered again restarts at 1."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def data_version(self) -> str:
        """Return `name:version`, the Dagster data version of outputs of this version."""
        return f"{self.name}:{self.version}"


class Registry(Protocol):
    """The model registry as used by scoring. Every method raises RegistryError if the registry can't be reached."""

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """Return the version that `alias` names now.

        Raises:
            RegistryError: there is no such model, or the alias is not set.
        """

    def version(self, name: str, version: int) -> ModelVersion:
        """Return exactly this version.

        Raises:
            RegistryError: there is no such model or version.
        """

    def size(self, model: ModelVersion) -> int:
        """Return the size of the version's files in bytes, as far as it is known without a download."""

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """Copy the version's files, or only `file`, below `destination`. Return the folder with MLmodel, or the file.

        Raises:
            ModelRefused: the version's files are gone.
        """


class MlflowRegistry:
    """A `Registry` on an MLflow server, or on a database that MLflow opens in this process."""

    def __init__(self, tracking_uri: str, registry_uri: str) -> None:
        """Connect lazily, at the first call."""
        self._tracking_uri = tracking_uri
        self._registry_uri = registry_uri
        self._opened: MlflowClient | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "MlflowRegistry":
        """Return the registry that the settings name."""
        return cls(settings.mlflow_tracking_uri, settings.registry_uri)

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """See `Registry.resolve`."""
        found = self._find(lambda client: self._read(client.get_model_version_by_alias(name, alias)))
        if found is None:
            self._registered(name)
            raise AliasNotSet(name, alias)
        return found

    def version(self, name: str, version: int) -> ModelVersion:
        """See `Registry.version`."""
        found = self._find(lambda client: self._read(client.get_model_version(name, str(version))))
        if found is None:
            self._registered(name)
            raise VersionNotFound(name, version)
        return found

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a model, the newest first.

        Raises:
            RegistryError: the registry can't be reached, or has no such model.
        """
        self._registered(name)
        query = "name='{}'".format(name.replace("'", "''"))
        found = self._find(lambda client: [*map(self._read, client.search_model_versions(query))])  # up to 10,000
        return sorted(found or (), key=lambda each: -each.version)

    def aliases(self, name: str) -> dict[str, int]:
        """Return alias → the version that it names. Raises like `versions`."""
        return {alias: int(version) for alias, version in self._registered(name).aliases.items()}

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of a registered model. Raises like `versions`."""
        return dict(self._registered(name).tags)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Set the alias on a version, which exists. Raises RegistryUnreachable if the registry can't be written."""
        self._write(lambda client: client.set_registered_model_alias(name, alias, str(version)))

    def set_tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a registered model. Raises like `set_alias`."""
        self._write(lambda client: client.set_registered_model_tag(name, key, value))

    def size(self, model: ModelVersion) -> int:
        """See `Registry.size`."""
        client, size = self._client(), 0
        import mlflow.artifacts

        try:
            folders = [_source(client, model)]
            while folders:
                folder = folders.pop()
                for entry in mlflow.artifacts.list_artifacts(artifact_uri=folder, tracking_uri=self._tracking_uri):
                    size += entry.file_size or 0
                    if entry.is_dir:
                        folders.append(f"{folder}/{PurePosixPath(entry.path).name}")
        except Exception as error:  # exception types differ between artifact stores: OSError, botocore's, requests'
            raise RegistryUnreachable(self._registry_uri, error) from error
        return size

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """See `Registry.download`. Files are always copied, so that they can't change while they are loaded."""
        client = self._client()
        import mlflow.artifacts

        try:
            source = _source(client, model)
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source}/{file}" if file else source,
                    dst_path=str(destination),
                    tracking_uri=self._tracking_uri,
                )
            )
        except Exception as error:  # see `size`
            if self._files_are_gone(client, model):
                raise ModelRefused(str(model), "its files are no longer in the artifact store.") from None
            raise RegistryUnreachable(self._registry_uri, error) from error

    def read(self, model: ModelVersion, file: str, most: int = -1) -> bytes | None:
        """Return the content of a file in the folder of the version's files; None if there is no such file.

        Of a file with more bytes than `most`, return only that many.

        Raises:
            RegistryUnreachable: the files can't be listed or fetched.
        """
        client = self._client()
        import mlflow.artifacts

        try:
            source = _source(client, model)
            listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self._tracking_uri)
        except Exception as error:  # see `size`
            raise RegistryUnreachable(self._registry_uri, error) from error
        if file not in [PurePosixPath(entry.path).name for entry in listed]:
            return None
        with scratch_folder() as folder, self.download(model, folder, file).open("rb") as content:
            return content.read(most)

    def _files_are_gone(self, client: "MlflowClient", model: ModelVersion) -> bool:
        import mlflow.artifacts

        try:
            return not mlflow.artifacts.list_artifacts(
                artifact_uri=_source(client, model), tracking_uri=self._tracking_uri
            )
        except Exception:  # a failed request does not prove that the files are gone
            return False

    def _find(self, request: "Callable[[MlflowClient], Result]", uri: str | None = None) -> "Result | None":
        """Return the result of a request; None if the server does not have the requested object.

        Raises:
            RegistryUnreachable: the server at `uri`, by default the registry's, returns no usable response.
        """
        client = self._client()
        from google.protobuf.json_format import ParseError
        from mlflow.exceptions import MlflowException

        try:
            return request(client)
        except RegistryUnreachable:
            raise
        except MlflowException as error:
            if error.error_code in MISSING:
                return None
            raise RegistryUnreachable(uri or self._registry_uri, error) from error
        except (TypeError, ValueError, ParseError) as error:
            raise RegistryUnreachable(uri or self._registry_uri, "not in MLflow's format") from error

    def _write(self, request: "Callable[[MlflowClient], None]") -> None:
        client = self._client()
        try:
            request(client)
        except Exception as error:  # MLflow's, and those of databases
            raise RegistryUnreachable(self._registry_uri, error) from error

    def _client(self) -> "MlflowClient":
        if self._opened is None:
            _check_database_exists(self._registry_uri)
            import_mlflow()
            if any(uri.startswith("http") for uri in (self._tracking_uri, self._registry_uri)):
                # MLflow imports Feast in its first request, for headers (feast 0.67, mlflow 3.17). Importing it first,
                # without typeguard's instrumentation, takes 5 s of CPU time instead of 13.
                import_feast()
            from mlflow import MlflowClient

            try:
                with collector_paused():  # with a database as the registry, most of MLflow's server is imported
                    self._opened = MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self._registry_uri)
            except Exception as error:  # for a database, SQLAlchemy and alembic raise their own exception types
                raise RegistryUnreachable(self._registry_uri, error) from error
        return self._opened

    def _read(self, found: "MlflowModelVersion") -> ModelVersion:
        tags, run_id = dict(found.tags), found.run_id
        if FEATURE_SERVICE_TAG not in tags and run_id:
            run = self._find(lambda client: client.get_run(run_id), self._tracking_uri)
            service = run and run.data.tags.get(FEATURE_SERVICE_TAG)  # versions outlive a deleted run
            if service:
                tags[FEATURE_SERVICE_TAG] = service
        return ModelVersion(found.name, int(found.version), tags, found.creation_timestamp or 0)

    def _registered(self, name: str) -> "RegisteredModel":
        found = self._find(lambda client: client.get_registered_model(name))
        if found is None:
            raise ModelNotRegistered(name, self._registry_uri)
        return found


def _source(client: "MlflowClient", model: ModelVersion) -> str:
    """Return the address of the version's files."""
    return str(client.get_model_version_download_uri(model.name, str(model.version))).rstrip("/")


def _check_database_exists(uri: str) -> None:
    # MLflow would create an empty database and its parent folders.
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RegistryUnreachable(uri, "there is no such file")
