"""`model-serving score` and `compare`: from a file of entity rows to predictions, without Dagster."""

import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from cli.configuration import setting_option, settings_options
from cli.display import Progress, json_option, print_json, print_table, progress
from cli.everyone import check_time, everyone_options, list_everyone
from cli.stores import load_version, open_stores

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.batch.manifest import Manifest, ScoringSummary
    from scoring.batch.request import RequestCopy
    from scoring.files.location import Location
    from scoring.files.parquet import ParquetFiles
    from scoring.serving import ServingModel
    from scoring.settings import Settings

STANDARD = "-"
STDIN_NAME = "standard input"
REQUEST_SUFFIXES = (".csv", ".tsv", ".parquet")
OUTPUT_SUFFIXES = (".parquet", ".csv")
UNSCORED = 3

EPILOG = """
\b
Examples:
  model-serving score day1.csv                     # writes day1.scored.parquet
  model-serving score day1.csv -o scored.csv --version 2
  cat day1.csv | model-serving score - > scored.csv
  model-serving score s3://requests/day1.parquet -o s3://results/day1.parquet
  model-serving score --everyone --as-of 2026-11-30
"""

COMPARE_EPILOG = """
\b
Example:
  model-serving compare 1 2 day1.csv
"""


@click.command(epilog=EPILOG)
@click.argument("file", required=False)
@everyone_options
@click.option("-o", "--output", metavar="OUT", help="Parquet file, CSV file, or - for CSV to standard output.")
@click.option("--version", type=click.IntRange(1), help="Model version. [default: the alias's]")
@setting_option("--engine", type=click.Choice(["local", "spark"]), help="Batch engine. [default: local]")
@click.option("--strict", is_flag=True, help=f"Return {UNSCORED} if a row has no prediction. OUT is written.")
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

    FILE is CSV, TSV or Parquet with the join keys and an event_timestamp, here or in S3. OUT has its rows in its order,
    with the features, the prediction, and a reason where there is none. OUT is replaced when it is complete.
    """
    started = time.monotonic()
    at = check_time(everyone, as_of)
    if (file is None) == (at is None):
        raise click.UsageError("Give either FILE or --everyone")
    source, output = check_request(file) if file else None, _check_output(file or "everyone.parquet", output)
    with progress() as shown, contextlib.ExitStack() as stack:
        settings, registry, store = open_stores(shown)
        from scoring.files.atomic import scratch_folder
        from scoring.files.location import Location

        scratch = stack.enter_context(scratch_folder())
        shown.stage("Loading the model")
        serving = load_version(settings, registry, store, version, scratch)
        if at:
            folder = Location(stack.enter_context(scratch_folder()))
            source, _ = list_everyone(store, serving.features, at, folder, shown)
        request = stack.enter_context(read_request(source))
        result = Location(scratch / "result")
        manifest = score_with(settings, store, serving, request, result, shown)
        shown.stage(f"Writing {output}")
        _write(result, manifest, output)
    _summarize(manifest, output, time.monotonic() - started, as_json)
    return UNSCORED if strict and manifest.outcome.scored < manifest.outcome.rows else 0


@click.command(epilog=COMPARE_EPILOG)
@click.argument("version", type=click.IntRange(1), metavar="N")
@click.argument("other", type=click.IntRange(1), metavar="M")
@click.argument("file")
@settings_options
@json_option
def compare(version: int, other: int, file: str, as_json: bool) -> None:
    """Score FILE with versions N and M, and print how their predictions differ.

    The differences are those of M from N. Nothing is written.
    """
    source = check_request(file)
    with progress() as shown, contextlib.ExitStack() as stack:
        settings, registry, store = open_stores(shown)
        from scoring.batch.manifest import output_parts
        from scoring.files.atomic import scratch_folder
        from scoring.files.location import Location
        from scoring.files.parquet import ParquetFiles
        from scoring.monitoring.comparison import compare_outputs

        request = stack.enter_context(read_request(source))
        results = []
        for number in (version, other):
            scratch = stack.enter_context(scratch_folder())
            shown.stage("Loading the model")
            serving = load_version(settings, registry, store, number, scratch)
            result = Location(scratch / "result")
            manifest = score_with(settings, store, serving, request, result, shown)
            table = stack.enter_context(ParquetFiles(output_parts(result)))
            results.append((manifest.origin.model, table, manifest.outcome.output_names))
        compared = compare_outputs(*results)
        statistics, labels = compared.statistics(), compared.changed_labels()
    if as_json:
        print_json(
            {
                "summary": compared.summary(), "rows": compared.rows,
                "statistics": statistics[1] if statistics else [], "changed_labels": labels[1] if labels else [],
            }
        )  # fmt: skip
        return
    click.echo(compared.summary())
    for columns, rows in filter(None, (statistics, labels)):
        print_table(columns, [[row.get(column) for column in columns] for row in rows])


def check_request(file: str) -> "Location | None":
    """Return a request's location; None for standard input. Called before the imports, which take seconds.

    Raises:
        click.UsageError: there is no such file, or it has another suffix than a request.
    """
    if file == STANDARD:
        return None
    source = _location(file)
    if Path(source.name).suffix.lower() not in REQUEST_SUFFIXES:
        raise click.UsageError(f"{file} must end in {', '.join(REQUEST_SUFFIXES)}")
    if source.local is not None and not source.local.is_file():
        raise click.UsageError(f"There is no file {file}")
    return source


def _check_output(file: str, output: str | None) -> str:
    if output is None:
        output = STANDARD if file == STANDARD else f"{Path(_location(file).name).stem}.scored.parquet"
    if output == STANDARD:
        return output
    place = _location(output)
    if Path(place.name).suffix not in OUTPUT_SUFFIXES:
        raise click.UsageError(f"OUT must end in {' or '.join(OUTPUT_SUFFIXES)}, and is {output}")
    own = _location(file)
    same = file != STANDARD and place == own
    if place.local is not None and place.local.exists():
        same |= not place.local.is_file()
        same |= own.local is not None and own.local.exists() and own.local.samefile(place.local)
    if same:
        raise click.UsageError(f"OUT must be another file than {output}")
    return output


def _location(text: str) -> "Location":
    from scoring.files.location import Location

    try:
        return Location(text)
    except ValueError as error:
        raise click.UsageError(f"{text} can't be used: {error}") from None


@contextlib.contextmanager
def read_request(source: "Location | None") -> "Iterator[RequestCopy]":
    """Provide a local copy of a request, or of standard input."""
    from scoring.batch.request import RequestCopy, copied_request
    from scoring.files.atomic import scratch_folder
    from scoring.files.transfer import content_of

    if source is not None:
        with copied_request(source) as copy:
            yield copy
        return
    with scratch_folder() as scratch:
        file = scratch / "request"
        with file.open("wb") as written:
            shutil.copyfileobj(sys.stdin.buffer, written)
        with file.open("rb") as opened:
            start = opened.readline(1 << 20)
        suffix = ".parquet" if start.startswith(b"PAR1") else ".tsv" if b"\t" in start else ".csv"
        file = file.rename(file.with_suffix(suffix))
        yield RequestCopy(file, STDIN_NAME, content_of(file, STDIN_NAME))


def score_with(
    settings: "Settings",
    store: "FeatureStore",
    serving: "ServingModel",
    request: "RequestCopy",
    folder: "Location",
    shown: Progress,
) -> "Manifest":
    """Join a request with features, and score it into an empty folder.

    Raises:
        ServingError: as the engine's two methods; or a prediction is NaN, infinite or null.
    """
    from scoring.batch.manifest import Origin
    from scoring.engine import choose_engine
    from scoring.features.feature_store import read_definitions
    from scoring.predict import Policy

    engine, features = choose_engine(settings), serving.features
    definitions = read_definitions(store).hash
    origin = Origin(request.content, str(serving.model.version), features.service, definitions)
    shown.stage("Joining features")
    engine.write_input(request, origin, store, features, folder, progress=shown.rows)
    shown.stage(f"Scoring with {serving.model.version}")
    policy = Policy.from_settings(settings)
    return engine.write_output(folder, serving, policy, functools.partial(_check_finite, serving), shown.rows)


def _check_finite(serving: "ServingModel", _table: "ParquetFiles", outcome: "ScoringSummary") -> None:
    from scoring.errors import PredictionFailed
    from scoring.predict import NOT_FINITE

    if broken := outcome.reasons.get(NOT_FINITE):
        problem = f"{broken} of {outcome.scored + broken} predictions are NaN, infinite or null; nothing was written."
        raise PredictionFailed(str(serving.model.version), problem)


def _write(folder: "Location", manifest: "Manifest", output: str) -> None:
    """Replace OUT by the result in a folder, or write it to standard output."""
    from scoring.batch.manifest import OUTPUT_NAME, output_parts
    from scoring.files.location import Location
    from scoring.files.parquet import ParquetFiles, write_tables
    from scoring.files.transfer import publishing

    if output == STANDARD:
        with ParquetFiles(output_parts(folder)) as table:
            _write_csv(table, sys.stdout.buffer)
        return
    with publishing(Location(output)) as part:
        if output.endswith(".csv"):
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
    outcome, to_stderr = manifest.outcome, output == STANDARD
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
