"""`model-serving versions`: the versions of the registered model, and which one serves."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cli.configuration import settings_options
from cli.display import json_option, print_json, print_table, progress
from cli.stores import Stores, open_stores

if TYPE_CHECKING:
    from scoring.models.registry import ModelVersion


@click.command()
@settings_options
@json_option
def versions(as_json: bool) -> None:
    """List the versions of the model, with aliases, and why one can't serve.

    A version is only linked to its features here. `model-serving check --version N` also loads it.
    """
    with progress() as shown:
        stores = open_stores(shown)
        settings = stores.settings
        shown.stage("Reading the registry")
        found = stores.registry.versions(settings.model_name)
        aliases = stores.registry.aliases(settings.model_name)
        rows: list[dict[str, Any]] = []
        for place, version in enumerate(found):
            rows.append(
                {
                    "version": version.version,
                    "aliases": sorted(alias for alias, named in aliases.items() if named == version.version),
                    "serving": aliases.get(settings.model_alias) == version.version,
                    "created": datetime.fromtimestamp(version.created_ms // 1000, UTC),
                    "refused": _refusal(stores, version),
                }
            )
            shown.rows(place + 1, len(found))
    if as_json:
        print_json({"model": settings.model_name, "alias": settings.model_alias, "versions": rows})
        return
    print_table(
        [settings.model_name, "aliases", "created", "serves"],
        [
            (
                each["version"],
                ", ".join(each["aliases"]),
                f"{each['created']:%Y-%m-%d %H:%M}",
                each["refused"] or ("yes" if each["serving"] else "could"),
            )
            for each in rows
        ],
    )


def _refusal(stores: Stores, version: "ModelVersion") -> str | None:
    from scoring.errors import ModelRefused, ServingError
    from scoring.serving import link_registered_version

    try:
        link_registered_version(stores.registry, stores.features, version, stores.settings)
    except ModelRefused as error:
        return error.reason
    except ServingError as error:
        return str(error)
    return None
