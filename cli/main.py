"""The command `model-serving`: its subcommands, and what it prints and returns if one fails."""

import atexit
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from cli.check import check
from cli.compare import compare
from cli.display import EXIT_FAILURE, EXIT_UNSCORED, EXIT_USAGE
from cli.init import init
from cli.replay import replay
from cli.request import request
from cli.score import score
from cli.serve import serve, up
from cli.versions import promote, rollback, versions
from scoring.errors import ArgumentError, ServingError
from scoring.foreign_errors import first_line

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EPILOG = f"""
\b
Exit codes: 0 success, {EXIT_FAILURE} failure, {EXIT_USAGE} wrong arguments or settings,
{EXIT_UNSCORED} rows without a prediction (score --strict), 128 + N stopped by signal N.
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="model-serving", message="%(version)s")
def commands() -> None:
    """Serve a registered model on Feast features.

    Settings come from options, then from SERVING_ variables, then from serving.toml in the working directory.
    """


for each in (score, request, compare, versions, check, promote, rollback, replay, serve, up, init):
    commands.add_command(each)


def run() -> NoReturn:
    """Run the subcommand of the process's arguments, and end the process."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it is closed: the next file that is opened would get its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it stays open
    warnings.showwarning = _ignore_warning  # a filter would not last, because SQLAlchemy and MLflow set their own
    code = main()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # Feast removes a folder of its own
    os._exit(code)  # the interpreter would take a second to free the libraries, and wait for MLflow's threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand, by default that of the process's arguments. Return its exit code.

    Every error is printed as one line. The environment variable MODEL_SERVING_TRACEBACK=1 adds a traceback.
    """
    signals: list[int] = []
    try:
        with _stoppable(signals):
            code = commands.main(arguments, "model-serving", standalone_mode=False)
            sys.stdout.flush()
        return int(code or 0)
    except SystemExit:  # click exits if the reader of a pipe is gone
        return _explain(BrokenPipeError())
    except Exception as error:  # click makes Abort of a KeyboardInterrupt, and DuckDB an error of its own
        return 128 + signals[0] if signals else _explain(error)


def _explain(error: Exception) -> int:
    """Print an error. Return its exit code."""
    code = EXIT_FAILURE
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message())
            return EXIT_USAGE
        case click.Abort():
            return EXIT_FAILURE
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails to flush it at the end
            return 128 + signal.SIGPIPE
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "model-serving"
            problem, code = f"{error.format_message().rstrip('.')}: see `{path} --help`.", EXIT_USAGE
        case ServingError():
            problem, code = str(error), EXIT_USAGE if isinstance(error, ArgumentError) else EXIT_FAILURE
        case _:
            why = f"unexpected {type(error).__name__} ({first_line(error)})"
            problem = f"{why}: set MODEL_SERVING_TRACEBACK=1 for a traceback."
    if os.environ.get("MODEL_SERVING_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    print(f"model-serving: {problem}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _stoppable(signals: list[int]) -> Iterator[None]:
    """Append a stop signal to the list and raise KeyboardInterrupt, so that unfinished files are removed.

    A closing terminal sends SIGHUP, which nohup ignores.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_warning(*_: object, **__: object) -> None:
    """Ignore a warning: users can't act on those of Feast, MLflow and SQLAlchemy."""
