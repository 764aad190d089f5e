"""Resolve the model version of a run once, and pass it on by number."""

import re
import time
from collections.abc import Mapping

import dagster as dg
import msgspec
from pydantic import Field

from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError
from scoring.files.location import Location
from scoring.files.transfer import publishing
from scoring.foreign_errors import without_secrets
from scoring.models.registry import ModelVersion
from scoring.models.tags import FEATURE_SERVICE_TAG
from scoring.serving import resolve_version
from scoring.settings import Settings
from serving_assets.assets.failures import failing_in_one_line
from serving_assets.records.requests import VERSION_FILE_NAME
from serving_assets.resources import Serving

KEY = dg.AssetKey("registered_model_version")
# Pins a version as the run configuration does. Dagit's backfills have tags but no configuration, and run this asset on
# its own before the assets with partitions (1.13).
PIN_TAG, PINNED = "serving/version", "pinned by the run"
# Dagster's tag for the data version of an input (1.13). By default, it names the input's latest materialization, which
# may be from another run with another version.
INPUT_TAG = f"dagster/input_data_version/{KEY.to_user_string()}"


class VersionNotResolved(ServingError):
    """No run has resolved a version of this model yet."""

    def __init__(self, file: Location, problem: str) -> None:
        super().__init__(f"{file} {problem}: materialize registered_model_version before or together with batch_input.")


class VersionInDoubt(ServingError):
    """A run omits registered_model_version, and the alias no longer names the version that was resolved last."""

    def __init__(self, last: "VersionFile", alias: str, named: ModelVersion) -> None:
        chosen = f"alias {last.alias} named it then" if last.alias else "a run pinned it"
        super().__init__(
            f"This run does not determine the model version: registered_model_version was last materialized with "
            f"{last.name}/{last.version} ({chosen}), but alias {alias} now names {named}. To score with {named}, also "
            f"select registered_model_version. To score with {last.name}/{last.version}, select it and pin the "
            f"version: ops: {{registered_model_version: {{config: {{version: {last.version}}}}}}}."
        )


class PinNotUsable(ServingError):
    """The tag of a run does not name a version, or another one than its configuration."""

    def __init__(self, pin: str, problem: str) -> None:
        super().__init__(f"The run's tag {PIN_TAG} is {pin!r}, {problem}.")


class Chosen(msgspec.Struct, frozen=True):
    """A model version and how it was chosen."""

    name: str
    version: int
    by: str
    """Human-readable: `alias champion`, `pinned by the run`."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class VersionFile(msgspec.Struct, frozen=True):
    """The content of registered_model_version.json: the version that was resolved last."""

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
        description="Use this version of the registered model. The default is the version that the alias names.",
    )


@dg.asset(
    key=KEY,
    group_name="model",
    kinds={"mlflow"},
    description="The exact model version that the alias names now, or the one that the run pins. "
    "Its data version is name:version, so Dagit marks outputs of another version as stale.",
)
def registered_model_version(
    context: dg.AssetExecutionContext, config: PinnedVersion, serving: dg.ResourceParam[Serving]
) -> dg.MaterializeResult[None]:
    """Resolve the alias or the pinned version, and write registered_model_version.json atomically."""
    with failing_in_one_line():
        settings, pin = serving.settings, pinned_version(config.version, context.run.tags)
        version = resolve_version(serving.registry, settings, pin)
        resolved = VersionFile(
            name=version.name,
            version=version.version,
            alias=settings.model_alias if pin is None else None,
            feature_service=version.tags.get(FEATURE_SERVICE_TAG) or settings.feature_service,
            registry=without_secrets(settings.registry_uri),
            resolved_at_s=time.time(),
        )
        with publishing(settings.artifacts / VERSION_FILE_NAME) as part:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(resolved)))
    return dg.MaterializeResult(data_version=dg.DataVersion(version.data_version), metadata=_metadata(resolved))


def pinned_version(configured: int | None, tags: Mapping[str, str]) -> int | None:
    """Return the version that a run's configuration or tags pin; None if neither does.

    Raises:
        PinNotUsable: the tag is not a version number, or the configuration pins another version.
    """
    pin = tags.get(PIN_TAG)
    if pin is None:
        return configured
    if not re.fullmatch("[1-9][0-9]{0,17}", pin):
        raise PinNotUsable(pin, "which is not the number of a model version, such as 7")
    if configured not in (None, int(pin)):
        raise PinNotUsable(pin, f"and its configuration pins version {configured}: remove one of them")
    return int(pin)


def version_recorded_in_run(instance: dg.DagsterInstance, run_id: str, model: str) -> Chosen | None:
    """Return the version that registered_model_version resolved in this run, or in the run that it re-executes.

    The run's own events record it, so concurrent runs that pin different versions do not affect each other. If no such
    run materialized it, return the version of `model` that the run's tag pins, or else None.

    Raises:
        PinNotUsable: the tag is not a version number.
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
            pin = pinned_version(None, run.tags if run else {})
            return None if pin is None else Chosen(model, pin, PINNED)
        run_id = run.parent_run_id


def version_for_input(instance: dg.DagsterInstance, run_id: str, serving: Serving) -> Chosen:
    """Return the run's own version, or the one in registered_model_version.json if the alias names it too.

    Otherwise another run may have pinned it, or the alias has moved.

    Raises:
        VersionNotResolved: there is neither.
        VersionInDoubt: the alias names another version than the file.
        RegistryError: the alias is not set, or the registry does not answer.
    """
    own = version_recorded_in_run(instance, run_id, serving.settings.model_name)
    if own is not None:
        return own
    settings, alias = serving.settings, serving.settings.model_alias
    last = _read_version_file(settings)
    named = resolve_version(serving.registry, settings)
    if last.version != named.version:
        raise VersionInDoubt(last, alias, named)
    return Chosen(named.name, named.version, f"registered_model_version as last materialized, and alias {alias}")


def chosen_by_inputs(serving: Serving, name: str, number: int) -> Chosen:
    """Return the version for a run that only scores: the one that its inputs were made for.

    Raises:
        RegistryError: the registry does not answer.
    """
    alias = serving.settings.model_alias
    try:
        named = resolve_version(serving.registry, serving.settings)
    except (AliasNotSet, ModelNotRegistered):
        return Chosen(name, number, f"batch_input was made for it; alias {alias} is not set")
    if (named.name, named.version) == (name, number):
        return Chosen(name, number, f"batch_input was made for it; alias {alias} also names it")
    return Chosen(name, number, f"batch_input was made for it; alias {alias} now names {named}")


def _read_version_file(settings: Settings) -> VersionFile:
    file = settings.artifacts / VERSION_FILE_NAME
    try:
        found = msgspec.json.decode(file.read_bytes(), type=VersionFile)
    except FileNotFoundError:
        raise VersionNotResolved(file, "does not exist") from None
    except msgspec.MsgspecError:
        raise VersionNotResolved(file, "is not a valid version file") from None
    if found.name != settings.model_name:
        raise VersionNotResolved(file, f"names model {found.name!r}, but SERVING_MODEL_NAME is {settings.model_name!r}")
    return found


def _metadata(resolved: VersionFile) -> dict[str, dg.MetadataValue]:
    metadata: dict[str, dg.MetadataValue] = {
        "model_name": dg.MetadataValue.text(resolved.name),
        "model_version": dg.MetadataValue.int(resolved.version),
        "chosen_by": dg.MetadataValue.text(f"alias {resolved.alias}" if resolved.alias else PINNED),
        "feature_service": dg.MetadataValue.text(resolved.feature_service or "none: batch_input lists the features"),
        "registry": dg.MetadataValue.text(resolved.registry),
    }
    return metadata | _page(resolved.registry, resolved.name, resolved.version)


def origin_metadata(
    settings: Settings, version: ModelVersion, service: str, chosen_by: str
) -> dict[str, dg.MetadataValue]:
    """Return metadata: the model version, how it was chosen, its feature service, and a link to its page."""
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
