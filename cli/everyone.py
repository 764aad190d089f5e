"""The options of `model-serving score --everyone` and `request --everyone`: every entity of the feature store."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from cli.display import Command, Progress

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.features.model_features import ModelFeatures
    from scoring.files.location import Location


def everyone_options(command: Command) -> Command:
    """Add the options --everyone and --as-of."""
    text = "Time in ISO 8601, in UTC unless it has a zone. [default: the latest midnight]"
    command = click.option("--as-of", metavar="T", help=text)(command)
    text = "Each entity that has a feature row within its time to live."
    return click.option("--everyone", is_flag=True, help=text)(command)


def check_time(everyone: bool, as_of: str | None) -> datetime | None:
    """Return the time that the two options give; None without --everyone.

    Raises:
        ArgumentError, click.UsageError: it is not a time, or --everyone is missing.
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
