"""`model-serving versions`, `promote` and `rollback`: which versions there are, and which one serves."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cli.configuration import settings_options
from cli.display import json_option, print_json, print_table, progress
from cli.stores import Stores, load_version, open_features, open_registry, open_stores

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.models.registry import MlflowRegistry, ModelVersion
    from scoring.settings import Settings

VERSIONS_EPILOG = """
\b
Example:
  model-serving versions --model churn --json
"""
PROMOTE_EPILOG = """
\b
Examples:
  model-serving promote 2
  model-serving rollback
"""


@click.command(epilog=VERSIONS_EPILOG, short_help="List the versions, and why one can't serve.")
@settings_options
@json_option
def versions(as_json: bool) -> None:
    """List the versions of the model, with aliases, and why one can't serve.

    The model itself is not loaded here, but by `model-serving check --version N`.
    """
    with progress() as shown:
        settings, registry, store = open_stores(shown)
        shown.stage("Reading the registry")
        found = registry.versions(settings.model_name)
        aliases = registry.aliases(settings.model_name)
        rows: list[dict[str, Any]] = []
        for version in found:
            shown.stage(f"Reading version {version.version}")
            rows.append(
                {
                    "version": version.version,
                    "aliases": sorted(alias for alias, named in aliases.items() if named == version.version),
                    "serving": aliases.get(settings.model_alias) == version.version,
                    "created": datetime.fromtimestamp(version.created_ms // 1000, UTC),
                    "refused": _refusal(settings, registry, store, version),
                }
            )
    if as_json:
        print_json({"model": settings.model_name, "alias": settings.model_alias, "versions": rows})
        return
    cells = [
        (each["version"], ", ".join(each["aliases"]), f"{each['created']:%Y-%m-%d %H:%M}", each["refused"] or "yes")
        for each in rows
    ]
    print_table([settings.model_name, "aliases", "created", "can serve"], cells)


def _refusal(
    settings: "Settings", registry: "MlflowRegistry", store: "FeatureStore", version: "ModelVersion"
) -> str | None:
    from scoring.errors import ModelRefused, ServingError
    from scoring.serving import check_registered_version

    try:
        check_registered_version(registry, store, version, settings)
    except ModelRefused as error:
        return error.reason
    except ServingError as error:
        return str(error)
    return None


@click.command(epilog=PROMOTE_EPILOG)
@click.argument("version", type=click.IntRange(1), metavar="N")
@click.option("--unchecked", is_flag=True, help="Do not load the version first.")
@click.option("--force", is_flag=True, help="Skip the thresholds of the challenger's comparison.")
@settings_options
@json_option
def promote(version: int, unchecked: bool, force: bool, as_json: bool) -> None:
    """Set the alias on version N, once it is admitted.

    If the alias `challenger` names N, its comparison must pass the thresholds (SERVING_PROMOTE_*), too.

    The API swaps to it within seconds, and Dagster scores the newest request again. The version that the alias named
    before is recorded in a tag of the registered model, for `model-serving rollback`.
    """
    with progress() as shown:
        settings, registry = open_registry(shown, to_load=not unchecked)
        from scoring.monitoring.challenger_report import promote as promote_version

        if not unchecked:
            shown.stage("Importing Feast")
            stores = Stores(settings, registry, open_features(settings))
            shown.stage(f"Loading version {version}")
            load_version(stores, version)
        before = promote_version(registry, settings, version, force=force)
    _print_moved(settings, before, version, as_json)


@click.command(epilog=PROMOTE_EPILOG)
@settings_options
@json_option
def rollback(as_json: bool) -> None:
    """Set the alias on the version that it named before.

    MLflow has no history of aliases, so only versions that `model-serving promote` replaced are known. If the
    alias was moved by other means since, nothing is changed: name the version with `model-serving promote N`. A second
    rollback goes back one more version.
    """
    with progress() as shown:
        settings, registry = open_registry(shown, to_load=False)
        from scoring.models.promotions import Promotions

        shown.stage("Moving the alias")
        before, now = Promotions(registry, settings.model_name, settings.model_alias).rollback()
    _print_moved(settings, before, now, as_json)


def _print_moved(settings: "Settings", before: int | None, now: int, as_json: bool) -> None:
    if as_json:
        print_json({"model": settings.model_name, "alias": settings.model_alias, "before": before, "now": now})
        return
    name = f"{settings.model_name}@{settings.model_alias}"
    if before == now:
        click.echo(f"{name} already names version {now}.")
    else:
        click.echo(f"{name} names version {now}" + ("." if before is None else f", before: {before}."))
