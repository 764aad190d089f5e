"""The MLflow model registry: from a name and an alias to one exact version, and that version's files."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import msgspec

from scoring.errors import AliasNotSet, ModelNotRegistered, ModelRefused, RegistryUnreachable, VersionNotFound
from scoring.imports import collector_paused, import_mlflow
from scoring.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

FEATURE_SERVICE_TAG = "feast.feature_service"
REQUEST_INPUTS_TAG = "serving.request_inputs"
OUTPUT_COLUMN_TAG = "serving.output_column"


class ModelVersion(msgspec.Struct, frozen=True):
    """One registered version: what an alias meant at one moment. Never an alias itself."""

    name: str
    version: int
    tags: dict[str, str] = {}
    """The version's own tags, and under them the feature service that its training run was tagged with, if any."""
    created_ms: int = 0
    """When it was registered, in milliseconds since 1970: a model deleted and registered anew counts from 1 again."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def uri(self) -> str:
        """`models:/name/version`, MLflow's address of exactly this version."""
        return f"models:/{self.name}/{self.version}"

    @property
    def data_version(self) -> str:
        """`name:version`, what makes outputs of this version differ from another's."""
        return f"{self.name}:{self.version}"


class Registry(Protocol):
    """What scoring needs of a model registry."""

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """The version that `alias` names now.

        Raises:
            RegistryError: unreachable, no such model, or the alias is not set.
        """

    def version(self, name: str, version: int) -> ModelVersion:
        """That very version.

        Raises:
            RegistryError: unreachable, no such model or no such version.
        """

    def size(self, model: ModelVersion) -> int:
        """Bytes of all files of the version, as far as the registry tells without fetching them.

        Raises:
            RegistryError: unreachable.
        """

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """Copy the version's files below `destination`: the folder that holds MLmodel, or only `file` of it.

        Raises:
            RegistryError: unreachable.
            ModelRefused: the version's files are gone.
        """


class MlflowRegistry:
    """A `Registry` kept by an MLflow server or by a database that MLflow opens itself."""

    def __init__(self, tracking_uri: str, registry_uri: str) -> None:
        """Remember where the registry is; nothing is opened before the first question."""
        self._tracking_uri = tracking_uri
        self._registry_uri = registry_uri
        self._opened: MlflowClient | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "MlflowRegistry":
        """The registry that the settings name."""
        return cls(settings.mlflow_tracking_uri, settings.registry_uri)

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """See `Registry.resolve`."""
        client = self._client()
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if _says_missing(error):
                raise self._missing_alias(name, alias) from None
            raise RegistryUnreachable(self._registry_uri, error) from error
        return self._read(found)

    def version(self, name: str, version: int) -> ModelVersion:
        """See `Registry.version`."""
        client = self._client()
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_model_version(name, str(version))
        except MlflowException as error:
            if _says_missing(error):
                self._check_registered(name)
                raise VersionNotFound(name, version) from None
            raise RegistryUnreachable(self._registry_uri, error) from error
        return self._read(found)

    def size(self, model: ModelVersion) -> int:
        """See `Registry.size`."""
        import mlflow.artifacts

        size = 0
        try:
            folders = [self._client().get_model_version_download_uri(model.name, str(model.version)).rstrip("/")]
            while folders:
                folder = folders.pop()
                for entry in mlflow.artifacts.list_artifacts(artifact_uri=folder, tracking_uri=self._tracking_uri):
                    size += entry.file_size or 0
                    if entry.is_dir:
                        folders.append(f"{folder}/{PurePosixPath(entry.path).name}")
        except Exception as error:  # artifact stores raise their own kinds: OSError, botocore's, requests'
            raise RegistryUnreachable(self._registry_uri, error) from error
        return size

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """See `Registry.download`. Always a copy: what is loaded can't change under us."""
        import mlflow.artifacts

        client = self._client()
        try:
            source = client.get_model_version_download_uri(model.name, str(model.version))
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source.rstrip('/')}/{file}" if file else source,
                    dst_path=str(destination),
                    tracking_uri=self._tracking_uri,
                )
            )
        except Exception as error:  # artifact stores raise their own kinds: OSError, botocore's, requests'
            if self._files_are_gone(model):
                raise ModelRefused(str(model), "its files are no longer in the artifact store.") from None
            raise RegistryUnreachable(self._registry_uri, error) from error

    def _files_are_gone(self, model: ModelVersion) -> bool:
        import mlflow.artifacts

        try:
            source = self._client().get_model_version_download_uri(model.name, str(model.version))
            return not mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=self._tracking_uri)
        except Exception:  # who does not answer has not said that there are none
            return False

    def _client(self) -> "MlflowClient":
        if self._opened is None:
            _check_database_exists(self._registry_uri)
            import_mlflow()
            from mlflow import MlflowClient

            try:
                with collector_paused():  # a registry that is a database imports most of MLflow's server
                    self._opened = MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self._registry_uri)
            except Exception as error:  # a database that can't be opened raises SQLAlchemy's and alembic's own kinds
                raise RegistryUnreachable(self._registry_uri, error) from error
        return self._opened

    def _read(self, found: "MlflowModelVersion") -> ModelVersion:
        tags = dict(found.tags)
        if FEATURE_SERVICE_TAG not in tags and found.run_id:
            service = self._training_run_tags(found.run_id).get(FEATURE_SERVICE_TAG)
            if service:
                tags[FEATURE_SERVICE_TAG] = service
        return ModelVersion(found.name, int(found.version), tags, found.creation_timestamp or 0)

    def _training_run_tags(self, run_id: str) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            return dict(self._client().get_run(run_id).data.tags)
        except MlflowException as error:
            if _says_missing(error):  # a deleted run leaves its versions behind
                return {}
            raise RegistryUnreachable(self._tracking_uri, error) from error

    def _missing_alias(self, name: str, alias: str) -> AliasNotSet:
        self._check_registered(name)
        return AliasNotSet(name, alias)

    def _check_registered(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client().get_registered_model(name)
        except MlflowException as error:
            if _says_missing(error):
                raise ModelNotRegistered(name, self._registry_uri) from None
            raise RegistryUnreachable(self._registry_uri, error) from error


def _check_database_exists(uri: str) -> None:
    # MLflow would create it, empty, with all folders above it.
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():
        raise RegistryUnreachable(uri, "there is no such file")


def _says_missing(error: Exception) -> bool:
    # An alias that is not set comes as INVALID_PARAMETER_VALUE from the database store (mlflow 3.17).
    return getattr(error, "error_code", None) in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
