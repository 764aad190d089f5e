"""`make bench`: measure us and our peers on the same work in one run, and write docs/benchmarks.md.

A section that was measured on the code as it is now is not measured again, so that a run can be resumed; naming it with
--only measures it anyway. A quick run, or one of some servers, keeps its results apart and leaves the page as it is.
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
from benchmarks.place import PAGE, RESULTS, VAR
from benchmarks.results import Result
from benchmarks.scale import QUICK, WHOLE, Scale
from tests.support.servers import ServerDidNotStart


class AnotherRuns(RuntimeError):
    """Two runs at once would measure each other, and write into the same folders."""

    def __init__(self) -> None:
        super().__init__(f"another run of the benchmarks uses {VAR}: wait until it has ended.")


TOLD = (AnotherRuns, WrkMissing, WrongVersion, UnexpectedAnswer, AnswersDiffer, ContenderFailed, ServerDidNotStart)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where something is missing, or where a peer is not what it should be."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _end)  # so that servers are stopped whoever ends this
    partial = options.quick or bool(options.servers)
    folder = RESULTS / "partial" if partial else RESULTS
    wanted = options.only or [name for name in SECTIONS if partial or _out_of_date(name)]
    try:
        with _alone():
            for result in _measure(wanted, QUICK if options.quick else WHOLE, options.servers):
                results.save(folder, result)
                print(f"\n{result.section}: {title_of(result.section)} (took {result.took_s:.0f} s)\n")
                print(table_of(result), flush=True)
    except TOLD as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if not partial:
        write_page(RESULTS, PAGE)
        print(f"\nWritten: {PAGE}")
    return 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    VAR.mkdir(parents=True, exist_ok=True)
    with (VAR / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnotherRuns from None
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
    parser.add_argument("--only", type=_names(SECTIONS), default=[], help=f"comma-separated, of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="few and short rounds, small batches")
    servers = tuple(online.SERVER_NAMES)
    parser.add_argument("--servers", type=_names(servers), default=[], help=f"comma-separated, of {', '.join(servers)}")
    return parser.parse_args(arguments)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
