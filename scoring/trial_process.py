"""The process in which a version is loaded on trial: how it is started, and what it does.

It is no prison: whoever may run code in that process (an allowed pickle) may do there what this user may do.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa

from scoring.admission import RowSource, prove
from scoring.errors import ModelRefused
from scoring.importing import import_what_predicts
from scoring.model_files import read_model_files
from scoring.registry import ModelVersion
from scoring.settings import ModelFormat, Settings

NICENESS = 5
ARENAS = 2

# What lies in the folder that caller and trial share.
ORDER = "order.json"
KNOWN_ROWS = "known.arrow"
OUTCOME = "outcome.json"
GOLDEN_ROWS = "golden.arrow"
LAST_WORDS = "stderr"
PREDICTION = "__prediction"


class Order(msgspec.Struct, frozen=True):
    """What the trial is told, as JSON, beside known rows in an Arrow file where there are any."""

    version: ModelVersion
    output_column: int | None
    model_formats: tuple[ModelFormat, ...]
    skops_trusted_types: tuple[str, ...]
    memory_bytes: int
    timeout_s: float


class Outcome(msgspec.Struct, frozen=True):
    """What the trial leaves behind, as JSON, beside the golden rows in an Arrow file."""

    refused: str | None = None
    source: RowSource = "made_up"
    predicted: bool = False
    as_array: bool = False
    same_in_any_batch: bool = True


def in_new_process(model_folder: Path, folder: Path, within_s: float) -> int | None:
    """A trial in a process that starts from nothing, which takes some seconds of processor time for its imports.

    Args:
        model_folder: the version's files.
        folder: holds the order, and gets the outcome.
        within_s: when it is killed.

    Returns:
        Its status, -n where signal n ended it; None where it was killed because the time was up.
    """
    root = str(Path(__file__).parent.parent)
    # Feast, imported in the calling process, leaves a variable behind that would move Prometheus clients elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    environment["MALLOC_ARENA_MAX"] = str(ARENAS)
    with (folder / LAST_WORDS).open("wb") as words:
        try:
            return subprocess.run(
                [sys.executable, "-m", "scoring.trial_process", str(model_folder), str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,  # what it sends to its process group stays there
                timeout=within_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


class ForkedAhead:
    """A process split off from this one, with all that is imported, which waits for the first trial.

    The imports are most of what a trial costs, and this process needs them too. Later trials start from nothing.
    """

    def __init__(self) -> None:
        """Nothing is split off yet: all trials would start from nothing."""
        self._waiting: tuple[BaseProcess, Connection] | None = None

    def split_off(self) -> None:
        """Import what a trial needs, and split off.

        Only before this process has threads and connections: its copy has one of the threads, the locks of all, and
        would hold the connections open.
        """
        import_what_predicts()
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        # A daemon, in multiprocessing's word: it ends with this process.
        trial = fork.Process(target=_wait_for_order, args=(there, here), name="trial", daemon=True)
        trial.start()
        there.close()
        self._waiting = trial, here

    def run(self, model_folder: Path, folder: Path, within_s: float) -> int | None:
        """A trial: see `in_new_process`."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return in_new_process(model_folder, folder, within_s)
        trial, line = waiting
        with line:
            try:
                line.send((str(model_folder), str(folder)))
                line.recv()  # that it begins
            except (OSError, EOFError):  # it was killed while it waited
                return in_new_process(model_folder, folder, within_s)
            trial.join(within_s)
            status = trial.exitcode
            trial.kill()
            trial.join()
            return status


def _wait_for_order(line: Connection, callers_end: Connection) -> None:
    callers_end.close()  # or the line would never end
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_DFL)
    os.setsid()
    _end_with_the_caller()
    _write_nothing()
    try:
        model_folder, folder = map(Path, line.recv())
        words = os.open(folder / LAST_WORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(words, sys.stderr.fileno())
        line.send(None)
    except (OSError, EOFError):  # nobody is there any more
        return
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        most_arenas = -8
        ctypes.CDLL(None).mallopt(most_arenas, ARENAS)
    _attend(model_folder, folder)


def _write_nothing() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def main() -> int:
    """The trial in a process of its own: `python -m scoring.trial_process <model's folder> <folder of the order>`."""
    model_folder, folder = Path(sys.argv[1]), Path(sys.argv[2])
    _end_with_the_caller()
    import_what_predicts()  # before the limits are set, so that they count what the model takes and nothing else
    _attend(model_folder, folder)
    return 0


def _attend(model_folder: Path, folder: Path) -> None:
    order = msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(order)
    settings = Settings(
        model_name=order.version.name,
        output_column=order.output_column,
        model_formats=order.model_formats,
        skops_trusted_types=order.skops_trusted_types,
    )
    known = folder / KNOWN_ROWS
    try:
        files = read_model_files(order.version, model_folder, settings)
        _, proof = prove(files, read_rows(known) if known.exists() else None)
        outcome = Outcome(None, proof.source, proof.predictions is not None, proof.as_array, proof.same_in_any_batch)
        rows = proof.rows
        if proof.predictions is not None:
            rows = rows.append_column(PREDICTION, pa.array(proof.predictions))
        write_rows(folder / GOLDEN_ROWS, rows)
    except ModelRefused as error:
        outcome = Outcome(refused=error.reason)
    except MemoryError:
        outcome = Outcome(refused=f"it needs more than SERVING_MAX_LOAD_MEMORY_BYTES={order.memory_bytes} to predict.")
    (folder / OUTCOME).write_bytes(msgspec.json.encode(outcome))


def write_rows(file: Path, rows: pa.Table) -> None:
    """Write a table as an Arrow file."""
    with pa.ipc.new_file(str(file), rows.schema) as writer:
        writer.write_table(rows)


def read_rows(file: Path) -> pa.Table:
    """Read what `write_rows` wrote."""
    with pa.ipc.open_file(str(file)) as reader:
        return reader.read_all()


def _limit(order: Order) -> None:
    signal.setitimer(signal.ITIMER_REAL, order.timeout_s)
    statistics = Path("/proc/self/statm")
    if statistics.exists():  # elsewhere than on Linux there is no limit that a process can set itself and that holds
        pages = int(statistics.read_text().split()[0])
        limit = pages * resource.getpagesize() + order.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end_with_the_caller() -> None:
    kill_with_parent: Literal[1] = 1  # PR_SET_PDEATHSIG
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the timer ends it
        ctypes.CDLL(None).prctl(kill_with_parent, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
