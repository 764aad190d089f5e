"""The process in which a version is loaded on trial: how it is started, and what it does.

It is no prison: whoever may run code in that process (an allowed pickle) may do there what this user may do.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NoReturn

import msgspec
import pyarrow as pa

from scoring.allocation import use_few_arenas
from scoring.errors import ModelRefused, why_no_room
from scoring.imports import import_what_predicts
from scoring.models.admission import RowSource, validate
from scoring.models.model_files import read_model_files
from scoring.models.registry import ModelVersion
from scoring.settings import ModelFormat, Settings

NICENESS = 5
ARENAS = 2
# Starting an interpreter and importing scikit-learn and MLflow: 5 s on a quiet machine, more beside a busy service.
IMPORTS_WITHIN_S = 120.0
# One that waits for its order has nothing to do but to read it.
BEGINS_WITHIN_S = 10.0
# A trial that has not ended by its own alarm by then has switched it off.
ALARM_IS_LATE_S = 5.0

# What lies in the folder that caller and trial share.
ORDER = "order.json"
KNOWN_ROWS = "known.arrow"
OUTCOME = "outcome.json"
GOLDEN_ROWS = "golden.arrow"
LAST_WORDS = "stderr"
PREDICTION = "__prediction"
# Its status where this machine took no more of its files: it may be unable to leave words behind.
NO_ROOM = os.EX_TEMPFAIL


class Order(msgspec.Struct, frozen=True):
    """What the trial is told, as JSON, beside known rows in an Arrow file where there are any."""

    version: ModelVersion
    output_column: int | None
    model_formats: tuple[ModelFormat, ...]
    skops_trusted_types: tuple[str, ...]
    memory_bytes: int
    timeout_s: float


class TrialResult(msgspec.Struct, frozen=True):
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
        within_s: when it is killed, counted from when it has imported everything.

    Returns:
        Its status, -n where signal n ended it; None where it was killed because the time was up.
    """
    root = str(Path(__file__).parents[2])
    # Feast, imported in the calling process, leaves a variable behind that would move Prometheus clients elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    environment["MALLOC_ARENA_MAX"] = str(ARENAS)
    with (
        (folder / LAST_WORDS).open("wb") as words,
        subprocess.Popen(
            [sys.executable, "-m", "scoring.models.trial_process", str(model_folder), str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            start_new_session=True,  # what it sends to its process group stays there, and ends with it
        ) as trial,
    ):
        try:
            return trial.wait(within_s + IMPORTS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_group(trial.pid)


class PreforkedTrial:
    """A process split off from this one, with all that is imported, which waits for the first trial.

    The imports are most of what a trial costs, and this process needs them too. Later trials start from nothing. Linux
    only: elsewhere libraries that are only imported may have threads already.
    """

    def __init__(self) -> None:
        """Nothing is split off yet: all trials would start from nothing."""
        self._waiting: tuple[int, Connection] | None = None

    def fork(self) -> None:
        """Import what a trial needs, and split off.

        Only before this process has threads and connections: its copy has one of the threads, the locks of all, and
        would hold the connections open.
        """
        import_what_predicts()
        here, there = multiprocessing.Pipe()
        trial = os.fork()
        if trial == 0:
            here.close()  # or the line would never end
            _be_the_trial(there)
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
                began = line.poll(BEGINS_WITHIN_S) and line.recv() is None
            except (OSError, EOFError):  # it was killed while it waited
                began = False
        status = _await(trial, within_s + ALARM_IS_LATE_S if began else 0.0)
        return status if began else in_new_process(model_folder, folder, within_s)


def _await(process: int, within_s: float) -> int | None:
    """A child's status once it has ended; None where it had not by then. Its group is killed in any case."""
    with os.fdopen(os.pidfd_open(process)) as ended:
        in_time = bool(select.select([ended], [], [], within_s)[0])
    _kill_group(process)
    os.kill(process, signal.SIGKILL)  # it may have had no time yet to lead a group
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status if in_time else None


def _kill_group(leader: int) -> None:
    """What a trial started, too: it shares its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left of it
        os.killpg(leader, signal.SIGKILL)


def _be_the_trial(line: Connection) -> NoReturn:
    """In the split-off process: never back to what the caller was doing."""
    status = 1
    try:
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, signal.SIG_DFL)
        os.setsid()
        _end_with_the_caller()
        _write_nothing()
        status = _wait_for_order(line)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # told as an interpreter would at its end
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait_for_order(line: Connection) -> int:
    try:
        model_folder, folder = map(Path, line.recv())
        words = os.open(folder / LAST_WORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(words, sys.stderr.fileno())
        line.send(None)
    except (OSError, EOFError):  # nobody is there any more
        return 1
    line.close()
    use_few_arenas(ARENAS)
    status = _attend(model_folder, folder)
    sys.stderr.flush()
    return status


def _write_nothing() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def main() -> int:
    """The trial in a process of its own: `python -m scoring.models.trial_process MODEL_FOLDER ORDER_FOLDER`."""
    model_folder, folder = Path(sys.argv[1]), Path(sys.argv[2])
    _end_with_the_caller()
    import_what_predicts()  # before the limits are set, so that they count what the model takes and nothing else
    return _attend(model_folder, folder)


def _attend(model_folder: Path, folder: Path) -> int:
    try:
        _prove(model_folder, folder)
    except Exception as error:
        if why_no_room(error) is None:
            raise
        return NO_ROOM
    return 0


def _prove(model_folder: Path, folder: Path) -> None:
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
        _, proof = validate(files, read_rows(known) if known.exists() else None)
        outcome = TrialResult(
            None, proof.source, proof.predictions is not None, proof.as_array, proof.same_in_any_batch
        )
        rows = proof.rows
        if proof.predictions is not None:
            rows = rows.append_column(PREDICTION, pa.array(proof.predictions))
        write_rows(folder / GOLDEN_ROWS, rows)
    except ModelRefused as error:
        if why_no_room(error) is not None:
            raise
        outcome = TrialResult(refused=error.reason)
    except MemoryError:
        outcome = TrialResult(
            refused=f"it needs more than SERVING_MAX_LOAD_MEMORY_BYTES={order.memory_bytes} to predict."
        )
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
