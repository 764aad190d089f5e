"""The files of `model-serving score` and `compare`: requests, also from standard input, and the output's name."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from scoring.batch.request import RequestCopy
    from scoring.files.location import Location

STDIO = "-"
STDIN_NAME = "standard input"
REQUEST_SUFFIXES = (".csv", ".tsv", ".parquet")
OUTPUT_SUFFIXES = (".parquet", ".csv")


def check_request(file: str) -> "Location | None":
    """Return a request's location; None for standard input. Called before the imports, which take seconds.

    Raises:
        click.UsageError: there is no such file, or it has another suffix than a request.
    """
    if file == STDIO:
        return None
    source = _location(file)
    if Path(source.name).suffix.lower() not in REQUEST_SUFFIXES:
        raise click.UsageError(f"{file} must end in {', '.join(REQUEST_SUFFIXES)}")
    if source.local is not None and not source.local.is_file():
        raise click.UsageError(f"There is no file {file}")
    return source


def check_output(source: "Location | None", output: str) -> None:
    """Check that OUT can be written, and is not the request.

    Raises:
        click.UsageError: it is not a file with the suffix of one, or it is the request.
    """
    if output == STDIO:
        return
    place = _location(output)
    if Path(place.name).suffix.lower() not in OUTPUT_SUFFIXES:
        raise click.UsageError(f"OUT must end in {' or '.join(OUTPUT_SUFFIXES)}, and is {output}")
    same = place == source
    if place.local is not None and place.local.exists():
        same |= not place.local.is_file()
        same |= source is not None and source.local is not None and source.local.samefile(place.local)
    if same:
        raise click.UsageError(f"OUT must be a file other than {output}")


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
