"""`make bench`: measure model-serving and its peers on the same work in one run, and write docs/benchmarks.md.

Sections that have already been measured on the current code are skipped, so an interrupted run can be resumed. --only
measures the named sections in any case. A quick run, or a run of selected servers, stores its results separately and
does not change the page.
"""

import argparse
import contextlib
import fcntl
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from benchmarks import results
from benchmarks.batch import sections as batch
from benchmarks.batch.contest import ContenderFailed
from benchmarks.environments import WrongVersion
from benchmarks.online import sections as online
from benchmarks.online import start
from benchmarks.online.answers import AnswersDiffer
from benchmarks.online.contestants import UnexpectedAnswer
from benchmarks.online.wrk import WrkMissing
from benchmarks.page import SECTIONS, table_of, title_of, write_page
from benchmarks.paths import PAGE, RESULTS, VAR
from benchmarks.results import Result
from benchmarks.scale import QUICK, WHOLE, Scale
from tests.support.servers import ServerDidNotStart


class AlreadyRunning(RuntimeError):
    """Another run is in progress. Two runs would distort each other's results and write to the same folders."""

    def __init__(self) -> None:
        super().__init__(f"another benchmark run is using {VAR}: wait until it ends.")


EXPECTED_ERRORS = (
    AlreadyRunning,
    WrkMissing,
    WrongVersion,
    UnexpectedAnswer,
    AnswersDiffer,
    ContenderFailed,
    ServerDidNotStart,
)
"""Errors that are reported in one line, without a traceback."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks. Return the exit status: 1 after one of EXPECTED_ERRORS."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _end)  # so that servers are stopped on SIGTERM too
    partial = options.quick or bool(options.servers)
    folder = RESULTS / "partial" if partial else RESULTS
    wanted = options.only or [name for name in SECTIONS if partial or _out_of_date(name)]
    try:
        with _locked():
            for result in _measure(wanted, QUICK if options.quick else WHOLE, options.servers):
                results.save(folder, result)
                print(f"\n{result.section}: {title_of(result.section)} (took {result.took_s:.0f} s)\n")
                print(table_of(result), flush=True)
    except EXPECTED_ERRORS as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if not partial:
        write_page(RESULTS, PAGE)
        print(f"\nWrote {PAGE}")
    return 0


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    VAR.mkdir(parents=True, exist_ok=True)
    with (VAR / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning from None
        yield


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _out_of_date(section: str) -> bool:
    kept = results.read(RESULTS, section)
    return kept is None or kept.code != results.code_version()


def _measure(wanted: Sequence[str], scale: Scale, servers: Sequence[str]) -> Iterator[Result]:
    yield from online.run([name for name in wanted if name in online.WORKLOADS], scale, servers)
    if start.SECTION in wanted:
        yield from start.run(scale)
    yield from batch.run([name for name in wanted if name in batch.WORKS], scale)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", type=_names(SECTIONS), default=[], help=f"comma-separated list of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--quick", action="store_true", help="few short rounds, small batches")
    servers = tuple(online.SERVER_NAMES)
    servers_help = f"comma-separated list of {', '.join(servers)}"
    parser.add_argument("--servers", type=_names(servers), default=[], help=servers_help)
    return parser.parse_args(arguments)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
