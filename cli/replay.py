"""`model-serving replay`: whether the answers that the API has logged are what batch computes."""

from datetime import UTC, datetime

import click

from cli.configuration import configuration, settings_options
from cli.display import EXIT_FAILURE, json_option, print_json, print_table, progress
from cli.stores import open_stores
from scoring.errors import SettingsError, StorageError

DAY = "%Y-%m-%d"
EPILOG = """
\b
Examples:
  model-serving replay
  model-serving replay 2026-11-30 --json
"""


@click.command(epilog=EPILOG, short_help="Compare logged answers with batch.")
@click.argument("day", type=click.DateTime([DAY]), required=False)
@settings_options
@json_option
def replay(day: datetime | None, as_json: bool) -> int:
    """Compute the answers that the API logged on DAY (UTC, by default today) again in batch, and compare them.

    Each logged row is joined by the offline store as of its time, and scored by the version that served it. The answers
    must be equal to the bit. A row whose answer differs gets a cause; the exit code is 1 if one is unexplained.
    """
    _, settings = configuration()
    log, date = settings.prediction_log, (day or datetime.now(UTC)).strftime(DAY)
    if log is None:
        raise SettingsError("SERVING_PREDICTION_LOG", "is not set: give the API and this command the same folder.")
    with progress() as shown:
        settings, registry, store = open_stores(shown)
        from scoring.monitoring.log_files import day_folder, log_files
        from scoring.monitoring.replay import replay as replay_log
        from scoring.monitoring.replay import report_file
        from scoring.monitoring.replay_causes import CAUSES, UNEXPLAINED

        folder, report = day_folder(log, date), report_file(log, date)
        if not log_files(folder):
            raise StorageError("replaying", str(folder), "it has no files: the API has logged no answers on that day")
        shown.stage(f"Replaying {folder}")
        found = replay_log(folder, settings, registry, store, report)
    if not found.rows:
        raise StorageError("replaying", str(folder), f"none of its {found.unanswered} rows was answered with scores")
    equal = found.rows - found.different
    if as_json:
        rows = {"day": date, "rows": found.rows, "equal": equal, "unanswered": found.unanswered}
        print_json(rows | {"causes": found.causes, "versions": found.versions, "report": str(report)})
    else:
        versions = ", ".join(f"{name}: {rows}" for name, rows in found.versions.items())
        click.echo(f"{date}: {equal} of {found.rows} answers are equal to the bit ({versions})")
        if found.different:
            print_table(
                ["cause", "rows", "meaning"],
                [(cause, rows, CAUSES[cause]) for cause, rows in found.causes.items() if rows],
            )
            click.echo(f"Rows whose answer differs: {report}")
    return EXIT_FAILURE if found.causes[UNEXPLAINED] else 0
