"""`model-serving request --everyone`, and the options of `score --everyone`: every entity of the feature store."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.configuration import settings_options
from cli.display import Progress, json_option, print_json, progress
from cli.stores import open_stores

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.features.model_features import ModelFeatures
    from scoring.files.location import Location

Command = TypeVar("Command", bound=Callable[..., Any])
EPILOG = """
\b
Example:
  model-serving request --everyone --as-of 2026-11-30
"""


def everyone_options(command: Command) -> Command:
    """Add the options --everyone and --as-of."""
    text = "Time in ISO 8601, in UTC unless it has a zone. [default: the latest midnight]"
    command = click.option("--as-of", metavar="T", help=text)(command)
    text = "Each entity that has a feature row within its time to live."
    return click.option("--everyone", is_flag=True, help=text)(command)


def check_time(everyone: bool, as_of: str | None) -> datetime | None:
    """Return the time that the two options give; None without --everyone.

    Raises:
        SettingsError, click.UsageError: it is not a time, or --everyone is missing.
    """
    if everyone:
        from scoring.batch.everyone import read_as_of

        return read_as_of(as_of)
    if as_of is not None:
        raise click.UsageError("--as-of needs --everyone")
    return None


def list_everyone(
    store: "FeatureStore", features: "ModelFeatures", time: datetime, folder: "Location", shown: Progress
) -> "tuple[Location, int]":
    """Write a request with everyone into a folder. Return the file and its rows. Raises as `write_everyone`."""
    from scoring.batch.everyone import everyone_file, write_everyone

    shown.stage("Listing the entities")
    file = folder / everyone_file(time)
    return file, write_everyone(store, features, time, file)


@click.command(epilog=EPILOG)
@everyone_options
@settings_options
@json_option
def request(everyone: bool, as_of: str | None, as_json: bool) -> None:
    """Write a batch request with everyone into the request folder, where Dagster finds and scores it."""
    time = check_time(everyone, as_of)
    if time is None:
        raise click.UsageError("Give --everyone: other requests are files of yours")
    with progress() as shown:
        settings, registry, store = open_stores(shown)
        from scoring.serving import link_registered_version, resolve_version

        features = link_registered_version(registry, store, resolve_version(registry, settings), settings)
        file, rows = list_everyone(store, features, time, settings.batch_requests, shown)
    if as_json:
        print_json({"request": str(file), "rows": rows, "as_of": time})
    else:
        click.echo(f"{file}: {rows} entities as of {time.isoformat()}")
