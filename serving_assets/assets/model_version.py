"""registered_model_version: the exact version that a run scores with, resolved once and then passed by its number."""

import time

import dagster as dg
import msgspec
from pydantic import Field

from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError, without_secrets
from scoring.files.location import Location
from scoring.files.transfer import publishing
from scoring.models.registry import FEATURE_SERVICE_TAG, ModelVersion
from scoring.serving import resolve_version
from scoring.settings import Settings
from serving_assets.assets.failures import failing_in_one_line
from serving_assets.records.requests import VERSION_FILE_NAME
from serving_assets.resources import Serving

KEY = dg.AssetKey("registered_model_version")
# Dagster's own tag for the version of an input that an output was made from (dagster 1.13). By default, it names the
# input's latest materialization, which may be that of another run with another version.
INPUT_TAG = f"dagster/input_data_version/{KEY.to_user_string()}"


class VersionNotResolved(ServingError):
    """No run has resolved a model version yet, or the last one was of another model."""

    def __init__(self, file: Location, problem: str) -> None:
        super().__init__(f"{file} {problem}: materialize registered_model_version first, or together with batch_input.")


class VersionInDoubt(ServingError):
    """A run omits registered_model_version, whose last version is not the one that the alias names now."""

    def __init__(self, last: "VersionFile", alias: str, named: ModelVersion) -> None:
        chosen = f"as alias {last.alias} named it then" if last.alias else "pinned by a run"
        super().__init__(
            f"This run does not determine the model version: registered_model_version was materialized last "
            f"with {last.name}/{last.version} ({chosen}), and alias {alias} names {named} now. Select "
            f"registered_model_version, too, to score with {named}; to score with {last.name}/{last.version}, also pin "
            f"it: ops: {{registered_model_version: {{config: {{version: {last.version}}}}}}}."
        )


class Chosen(msgspec.Struct, frozen=True):
    """A model version, and how it was chosen."""

    name: str
    version: int
    by: str
    """For people: `alias champion`, `pinned by the run`."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class VersionFile(msgspec.Struct, frozen=True):
    """registered_model_version.json: the version that was resolved last."""

    name: str
    version: int
    alias: str | None
    """The alias that named it; None if the run pinned it."""
    feature_service: str | None
    registry: str
    resolved_at_s: float
    """Seconds since 1970."""


class PinnedVersion(dg.Config):
    """Run configuration of registered_model_version."""

    version: int | None = Field(
        default=None,
        ge=1,
        description="Use this version of the registered model. By default, the one that the alias names.",
    )


@dg.asset(
    key=KEY,
    group_name="model",
    kinds={"mlflow"},
    description="The exact model version that the alias names now, or the one that the run's configuration pins. "
    "Its data version is name:version, so outputs of another version show as stale.",
)
def registered_model_version(config: PinnedVersion, serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Resolve the alias or the pin, and write registered_model_version.json."""
    with failing_in_one_line():
        settings = serving.settings
        version = resolve_version(serving.registry, settings, config.version)
        resolved = VersionFile(
            name=version.name,
            version=version.version,
            alias=settings.model_alias if config.version is None else None,
            feature_service=version.tags.get(FEATURE_SERVICE_TAG) or settings.feature_service,
            registry=without_secrets(settings.registry_uri),
            resolved_at_s=time.time(),
        )
        with publishing(settings.artifacts / VERSION_FILE_NAME) as part:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(resolved)))
    return dg.MaterializeResult(data_version=dg.DataVersion(version.data_version), metadata=_metadata(resolved))


def version_of_run(instance: dg.DagsterInstance, run_id: str) -> Chosen | None:
    """Return the version that registered_model_version got in this run, or in the run that this one re-executes.

    It is read from the run's own events: two concurrent runs that pin different versions can't mix them up. None if no
    such run materialized it.
    """
    while True:
        records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
        for record in reversed(records):
            event = record.event_log_entry.asset_materialization
            if event is not None and event.asset_key == KEY:
                name, number, by = (event.metadata[each].value for each in ("model_name", "model_version", "chosen_by"))
                return Chosen(str(name), int(str(number)), str(by))
        run = instance.get_run_by_id(run_id)
        if run is None or run.parent_run_id is None:
            return None
        run_id = run.parent_run_id


def version_to_use(instance: dg.DagsterInstance, run_id: str, serving: Serving) -> Chosen:
    """Return the version that a run joins features for: its own, else the one in registered_model_version.json.

    The latter is used only while the alias names it, too: another run may have pinned it, or the alias has moved.

    Raises:
        VersionNotResolved: there is neither.
        VersionInDoubt: the alias names another one.
        RegistryError: the alias is not set, or the registry does not answer.
    """
    own = version_of_run(instance, run_id)
    if own is not None:
        return own
    settings, alias = serving.settings, serving.settings.model_alias
    last = _read_version_file(settings)
    named = resolve_version(serving.registry, settings)
    if last.version != named.version:
        raise VersionInDoubt(last, alias, named)
    return Chosen(named.name, named.version, f"registered_model_version as materialized last, and alias {alias}")


def version_of_inputs(serving: Serving, name: str, number: int) -> Chosen:
    """Return the version of a run that neither resolves one nor joins: the one that its inputs were made for.

    Raises:
        RegistryError: the registry does not answer.
    """
    alias = serving.settings.model_alias
    try:
        named = resolve_version(serving.registry, serving.settings)
    except (AliasNotSet, ModelNotRegistered):
        return Chosen(name, number, f"batch_input was made for it; alias {alias} is not set")
    if (named.name, named.version) == (name, number):
        return Chosen(name, number, f"batch_input was made for it; alias {alias} names it, too")
    return Chosen(name, number, f"batch_input was made for it; alias {alias} names {named} now")


def _read_version_file(settings: Settings) -> VersionFile:
    file = settings.artifacts / VERSION_FILE_NAME
    try:
        found = msgspec.json.decode(file.read_bytes(), type=VersionFile)
    except FileNotFoundError:
        raise VersionNotResolved(file, "does not exist") from None
    except msgspec.MsgspecError:
        raise VersionNotResolved(file, "was not written by this project") from None
    if found.name != settings.model_name:
        raise VersionNotResolved(
            file, f"is about model {found.name!r} and SERVING_MODEL_NAME is {settings.model_name!r}"
        )
    return found


def _metadata(resolved: VersionFile) -> dict[str, dg.MetadataValue]:
    metadata: dict[str, dg.MetadataValue] = {
        "model_name": dg.MetadataValue.text(resolved.name),
        "model_version": dg.MetadataValue.int(resolved.version),
        "chosen_by": dg.MetadataValue.text(f"alias {resolved.alias}" if resolved.alias else "pinned by the run"),
        "feature_service": dg.MetadataValue.text(resolved.feature_service or "none: such a version is refused"),
        "registry": dg.MetadataValue.text(resolved.registry),
    }
    return metadata | _page(resolved.registry, resolved.name, resolved.version)


def origin_metadata(
    settings: Settings, version: ModelVersion, service: str, chosen_by: str
) -> dict[str, dg.MetadataValue]:
    """Return metadata with the model version, how it was chosen, its feature service, and a link to its page."""
    return {
        "model_name": dg.MetadataValue.text(version.name),
        "model_version": dg.MetadataValue.int(version.version),
        "chosen_by": dg.MetadataValue.text(chosen_by),
        "model_registered": dg.MetadataValue.timestamp(version.created_ms / 1000),
        "feature_service": dg.MetadataValue.text(service),
    } | _page(without_secrets(settings.registry_uri), version.name, version.version)


def _page(registry: str, name: str, version: int) -> dict[str, dg.MetadataValue]:
    if not registry.startswith(("http://", "https://")):
        return {}
    page = f"{registry.rstrip('/')}/#/models/{name}/versions/{version}"
    return {"model_page": dg.MetadataValue.url(page)}
