"""`model-serving score`: from a file of entity rows to predictions, without Dagster."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from cli.configuration import setting_option, settings_options
from cli.display import EXIT_UNSCORED, Progress, json_option, print_json, progress
from cli.everyone import check_time, everyone_options, list_everyone
from cli.request_file import STDIO, check_output, check_request, read_request
from cli.stores import Stores, load_version, open_stores

if TYPE_CHECKING:
    from scoring.batch.manifest import Manifest
    from scoring.batch.request import RequestCopy
    from scoring.files.location import Location
    from scoring.files.parquet import ParquetFiles
    from scoring.serving import ServingModel

EPILOG = """
\b
Examples:
  model-serving score day1.csv                     # writes day1.scored.parquet
  model-serving score day1.csv -o scored.csv --version 2
  cat day1.csv | model-serving score - > scored.csv
  model-serving score s3://requests/day1.parquet -o s3://results/day1.parquet
  model-serving score --everyone --as-of 2026-11-30
"""


@click.command(epilog=EPILOG)
@click.argument("file", required=False)
@everyone_options
@click.option("-o", "--output", metavar="OUT", help="Parquet file, CSV file, or - for CSV to standard output.")
@click.option("--version", type=click.IntRange(1), help="Model version. [default: the alias's]")
@setting_option("--engine", type=click.Choice(["local", "spark"]), help="Batch engine. [default: local]")
@click.option(
    "--strict", is_flag=True, help=f"Exit with {EXIT_UNSCORED} if a row has no prediction. OUT is written anyway."
)
@settings_options
@json_option
def score(
    file: str | None,
    everyone: bool,
    as_of: str | None,
    output: str | None,
    version: int | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Score FILE, standard input with -, or everyone.

    FILE is CSV, TSV or Parquet with the join keys and an event_timestamp, on this machine or in S3. OUT has its rows in
    its order, with the features, the prediction, and a reason where there is none. OUT is replaced when it is complete.
    """
    started = time.monotonic()
    at = check_time(everyone, as_of)
    if (file is None) == (at is None):
        raise click.UsageError("Give either FILE or --everyone")
    source = None if file is None else check_request(file)
    if output is None:
        output = f"{Path(source.name).stem}.scored.parquet" if source else "everyone.scored.parquet" if at else STDIO
    check_output(source, output)
    with progress() as shown, contextlib.ExitStack() as stack:
        stores = open_stores(shown)
        from scoring.files.atomic import scratch_folder
        from scoring.files.location import Location

        def read(serving: "ServingModel") -> "RequestCopy":
            place = source
            if at:
                folder = Location(stack.enter_context(scratch_folder()))
                place, _ = list_everyone(stores.store, serving.features, at, folder, shown)
            return stack.enter_context(read_request(place))

        result, manifest = score_version(stores, version, read, stack.enter_context(scratch_folder()), shown)
        shown.stage(f"Writing {output}")
        _write(result, manifest, output)
    _summarize(manifest, output, time.monotonic() - started, as_json)
    return EXIT_UNSCORED if strict and manifest.outcome.scored < manifest.outcome.rows else 0


def score_version(
    stores: Stores, version: int | None, read: "Callable[[ServingModel], RequestCopy]", scratch: Path, shown: Progress
) -> "tuple[Location, Manifest]":
    """Load a version, join the request that `read` provides, and score it into a folder of the empty folder `scratch`.

    Raises:
        ServingError: as `load_version` and the engine's two methods; or a prediction is NaN, infinite or null.
    """
    from scoring.engine import choose_engine, score_request
    from scoring.errors import PredictionFailed
    from scoring.files.location import Location
    from scoring.predict import NOT_FINITE, Policy

    settings, _, store = stores
    shown.stage("Loading the model")
    serving = load_version(stores, version, scratch)
    copy, folder = read(serving), Location(scratch / "result")
    shown.stage("Joining features")
    policy = Policy.from_settings(settings)
    progress = shown.rows("Joining"), shown.rows("Scoring")
    manifest = score_request(choose_engine(settings), serving, copy, store, policy, folder, progress)
    if broken := manifest.outcome.reasons.get(NOT_FINITE):
        total = broken + manifest.outcome.scored
        problem = f"{broken} of {total} predictions are NaN, infinite or null; nothing was written. Correct the model"
        remedy = ", or give inputs that may be null a value in SERVING_IMPUTE_VALUES" if policy.kind == "impute" else ""
        raise PredictionFailed(manifest.origin.model, f"{problem}{remedy}.")
    return folder, manifest


def _write(folder: "Location", manifest: "Manifest", output: str) -> None:
    """Replace OUT by the result in a folder, or write it to standard output."""
    from scoring.batch.manifest import OUTPUT_NAME, output_parts
    from scoring.files.location import Location
    from scoring.files.parquet import ParquetFiles, write_tables
    from scoring.files.transfer import publishing

    if output == STDIO:
        with ParquetFiles(output_parts(folder)) as table:
            _write_csv(table, sys.stdout.buffer)
        return
    with publishing(Location(output)) as part:
        if output.lower().endswith(".csv"):
            with ParquetFiles(output_parts(folder)) as table, part.open("wb") as file:
                _write_csv(table, file)
        elif manifest.parts:
            with ParquetFiles(output_parts(folder)) as table:
                write_tables(table.between(0, table.rows), part, table.schema.metadata)
        else:
            shutil.copyfile(str(folder / OUTPUT_NAME), part)


def _write_csv(table: "ParquetFiles", file: IO[bytes]) -> None:
    import pyarrow as pa
    from pyarrow import csv

    from scoring.arrow.text import to_string
    from scoring.files.parquet import no_rows

    def plain(rows: pa.Table) -> pa.Table:
        for place, field in enumerate(rows.schema):
            if not (pa.types.is_primitive(field.type) or pa.types.is_string(field.type)):
                column = pa.array([to_string(value) for value in rows[field.name]], pa.string())
                rows = rows.set_column(place, field.name, column)
        return rows

    with csv.CSVWriter(file, plain(no_rows(table.schema)).schema) as writer:
        for rows in table.between(0, table.rows):
            writer.write(plain(rows))


def _summarize(manifest: "Manifest", output: str, seconds: float, as_json: bool) -> None:
    """Print what was done, to stderr if standard output has the rows."""
    outcome, to_stderr = manifest.outcome, output == STDIO
    name, _, version = manifest.origin.model.rpartition("/")
    if as_json:
        found = {
            "output": None if to_stderr else output, "rows": outcome.rows, "scored": outcome.scored,
            "reasons": outcome.reasons, "model": {"name": name, "version": int(version)}, "seconds": round(seconds, 1),
        }  # fmt: skip
        print_json(found, to_stderr=to_stderr)
        return
    place = "" if to_stderr else f"{output}: "
    reasons = "".join(f", {count} {reason}" for reason, count in outcome.reasons.items())
    scored = f"{outcome.scored} of {outcome.rows} rows scored with {manifest.origin.model}"
    click.echo(f"{place}{scored}{reasons} ({seconds:.1f} s)", err=to_stderr)
