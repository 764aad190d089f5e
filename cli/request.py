"""`model-serving request`: writes a batch request with every entity."""

import click

from cli.configuration import settings_options
from cli.display import json_option, print_json, progress
from cli.everyone import check_time, everyone_options, list_everyone
from cli.stores import open_stores

EPILOG = """
\b
Example:
  model-serving request --everyone --as-of 2026-11-30
"""


@click.command(epilog=EPILOG, short_help="Write a request with every entity, for Dagster.")
@everyone_options
@settings_options
@json_option
def request(everyone: bool, as_of: str | None, as_json: bool) -> None:
    """Write a batch request with everyone into the request folder, where Dagster finds and scores it."""
    time = check_time(everyone, as_of)
    if time is None:
        raise click.UsageError("Give --everyone: to score your own rows, put a file into the request folder")
    with progress() as shown:
        settings, registry, store = open_stores(shown)
        from scoring.serving import link_registered_version, resolve_version

        features = link_registered_version(registry, store, resolve_version(registry, settings), settings)
        file, rows = list_everyone(store, features, time, settings.batch_requests, shown)
    if as_json:
        print_json({"request": str(file), "rows": rows, "as_of": time})
    else:
        click.echo(f"{file}: {rows} entities as of {time.isoformat()}")
