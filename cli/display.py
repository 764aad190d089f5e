"""What subcommands print and return: tables and sentences, or JSON with --json; progress; exit codes."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Command = TypeVar("Command", bound=Callable[..., Any])
EXIT_FAILURE, EXIT_USAGE, EXIT_UNSCORED = 1, 2, 3


def json_option(command: Command) -> Command:
    """Add the option --json as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: object, *, to_stderr: bool = False) -> None:
    """Print a value as JSON, with datetimes in ISO 8601."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value)), err=to_stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, to_stderr: bool = False) -> None:
    """Print a table. In a pipe, lines are not wrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as printed:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()), err=to_stderr)


class Progress:
    """Shows what a subcommand does and how far it is, on stderr if that is a terminal."""

    def __init__(self, bar: "Bar | None" = None) -> None:
        """Show nothing without a bar."""
        self._bar = bar
        self._task = bar.add_task("", total=None) if bar else None

    def stage(self, text: str) -> None:
        """Show what begins, with its elapsed time."""
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, total=None, description=text)

    def rows(self, text: str) -> Callable[[int, int], None]:
        """Return a function that shows how many rows of a stage are done. Its first call begins the stage.

        The rate is that since the first call, because the rows before it took as long as the start, such as a sort. The
        line fits a terminal of 80 columns.
        """
        first: tuple[float, int] | None = None

        def report(done: int, total: int) -> None:
            nonlocal first
            if self._bar is None or self._task is None:
                return
            now, shown = time.monotonic(), f"{text}: {done:,} of {total:,} rows"
            if first is None:
                first = now, done
                self.stage(shown)
                return
            rate = (done - first[1]) / max(now - first[0], 1e-3)
            left = (total - done) / max(rate, 1e-3)
            self._bar.update(self._task, description=f"{shown}, {rate:,.0f}/s, {left:.0f} s left")

        return report


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Show progress until the block ends. The line is removed from the terminal then."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar)
