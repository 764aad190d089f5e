"""The trial process, which loads and validates a version before the service loads it.

It protects against failures, not against attackers: code in an allowed pickle has all permissions of this user.
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
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import msgspec
import pyarrow as pa

from scoring.allocation import use_few_arenas
from scoring.errors import ModelRefused
from scoring.foreign_errors import why_no_room
from scoring.imports import import_for_serving, import_pyfunc
from scoring.models.admission import ValidationReport, validate
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model
from scoring.models.model_files import read_model_files
from scoring.models.registry import ModelVersion

TRIAL_NICENESS = 5
ARENAS = 2
# Starting an interpreter and importing scikit-learn and MLflow takes 5 s on an idle machine, more on a busy one.
IMPORT_TIMEOUT_S = 120.0
# A preforked process only imports MLflow's loaders, unless it was killed or stopped.
BEGIN_TIMEOUT_S = 60.0
# A trial that outlives its own alarm by this long has disabled it.
ALARM_GRACE_S = 5.0

# Files in the folder that the caller and the trial share.
TASK, RESULT, STDERR = "task.msgpack", "result.msgpack", "stderr.txt"
# Exit status if the disk is full, because the trial may be unable to write its result.
NO_ROOM = os.EX_TEMPFAIL


class TrialTask(msgspec.Struct, frozen=True):
    """The message from the caller to the trial."""

    version: ModelVersion
    rules: LoadingRules
    known_rows: pa.Table | None


class TrialResult(msgspec.Struct, frozen=True):
    """The message from the trial to the caller: a reason to refuse the version, or the report of its validation."""

    refused: str | None = None
    report: ValidationReport | None = None


def encode(message: msgspec.Struct) -> bytes:
    """Return the message as MessagePack."""
    return msgspec.msgpack.encode(message, enc_hook=_encode_rows)


def decode(file: Path, kind: Any) -> Any:
    """Read a message of this type from the file."""
    return decode_bytes(file.read_bytes(), kind)


def decode_bytes(message: bytes, kind: Any) -> Any:
    """Return the message of this type that `encode` encoded."""
    return msgspec.msgpack.decode(message, type=kind, dec_hook=_decode_rows)


def _encode_rows(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _decode_rows(_kind: type, encoded: bytes) -> pa.Table:
    return pa.ipc.open_stream(encoded).read_all()


def in_new_process(model_folder: Path, folder: Path, timeout_s: float) -> int | None:
    """Run a trial in a new interpreter, whose imports take some seconds of CPU time.

    Args:
        model_folder: the version's files.
        folder: holds the task, and receives the result.
        timeout_s: time limit of the trial, without its imports.

    Returns:
        The exit status, or -n if signal n ended the process; None if it was killed at the time limit.
    """
    arguments = ["scoring.models.trial_process", str(model_folder), str(folder)]
    with (folder / STDERR).open("wb") as stderr, start(arguments, stderr) as trial:
        try:
            return trial.wait(timeout_s + IMPORT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill_group(trial.pid)


def start(module: Sequence[str], stderr: BinaryIO, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start `python -m` with a module and its arguments, in a session of its own."""
    root = str(Path(__file__).parents[2])
    # Importing Feast 0.67 sets variables that would move the trial's Prometheus files.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    environment["MALLOC_ARENA_MAX"] = str(ARENAS)
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,  # so that signals to its process group reach the trial's processes only
    )


class PreforkedTrial:
    """A fork of this process, which waits for the first trial. Later trials start from scratch.

    The imports are most of a trial's cost, and this process needs all others, too. Linux only: elsewhere, libraries may
    start threads when they are imported.
    """

    def __init__(self) -> None:
        """Start without a fork: until `fork` is called, every trial starts from scratch."""
        self._waiting: tuple[int, Connection] | None = None

    def fork(self) -> None:
        """Import what a trial needs, and fork.

        Call it before this process has threads or connections. The fork has only one thread but inherits the locks of
        all threads, and it would keep the connections open.
        """
        import_for_serving()
        here, there = multiprocessing.Pipe()
        trial = os.fork()
        if trial == 0:
            here.close()  # otherwise the fork would never see the end of the pipe
            _be_the_trial(there)
        there.close()
        self._waiting = trial, here

    def run(self, model_folder: Path, folder: Path, timeout_s: float) -> int | None:
        """Run a trial, with the arguments and result of `in_new_process`."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return in_new_process(model_folder, folder, timeout_s)
        trial, pipe = waiting
        with pipe:
            try:
                pipe.send((str(model_folder), str(folder)))
                began = pipe.poll(BEGIN_TIMEOUT_S) and pipe.recv() is None
            except (OSError, EOFError):  # it was killed while it waited
                began = False
        status = _wait(trial, timeout_s + ALARM_GRACE_S if began else 0.0)
        return status if began else in_new_process(model_folder, folder, timeout_s)


def _wait(process: int, timeout_s: float) -> int | None:
    """Return a child's exit status; None if it did not end in time. Kill its process group in either case."""
    with os.fdopen(os.pidfd_open(process)) as ended:
        in_time = bool(select.select([ended], [], [], timeout_s)[0])
    kill_group(process)
    os.kill(process, signal.SIGKILL)  # it may not lead a group yet
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status if in_time else None


def kill_group(leader: int) -> None:
    """Kill a trial and every process that it started; they are in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(leader, signal.SIGKILL)


def _be_the_trial(pipe: Connection) -> NoReturn:
    """Run the trial in the fork. Never returns."""
    status = 1
    try:
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, signal.SIG_DFL)
        os.setsid()
        end_with_parent()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        status = _await_task(pipe)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # print the traceback as the interpreter would at exit
        traceback.print_exc()
    finally:
        os._exit(status)


def _await_task(pipe: Connection) -> int:
    import_pyfunc()
    try:
        model_folder, folder = map(Path, pipe.recv())
        stderr = os.open(folder / STDERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(stderr, sys.stderr.fileno())
        pipe.send(None)
    except (OSError, EOFError):  # the caller is gone
        return 1
    pipe.close()
    use_few_arenas(ARENAS)
    status, _ = run_trial(model_folder, folder)
    sys.stderr.flush()
    return status


def main() -> int:
    """Run a trial: `python -m scoring.models.trial_process MODEL_FOLDER TASK_FOLDER`."""
    model_folder, folder = map(Path, sys.argv[1:])
    end_with_parent()
    import_for_serving()  # before the limits are set, so that they cover the model alone
    import_pyfunc()
    return run_trial(model_folder, folder)[0]


def run_trial(model_folder: Path, folder: Path) -> tuple[int, Model | None]:
    """Run the task in `folder` and write the result there. Return the exit status, and the model unless refused.

    It sets the limits of this process, which also apply to later predictions.
    """
    try:
        model, result = _result(model_folder, decode(folder / TASK, TrialTask))
        (folder / RESULT).write_bytes(encode(result))
    except Exception as error:
        if why_no_room(error) is None:
            raise
        return NO_ROOM, None
    return 0, model


def _result(model_folder: Path, task: TrialTask) -> tuple[Model | None, TrialResult]:
    _set_limits(task.rules)
    try:
        files = read_model_files(task.version, model_folder, task.rules)
        model, report = validate(files, task.known_rows)
        return model, TrialResult(report=report)
    except ModelRefused as error:
        if why_no_room(error) is not None:
            raise
        return None, TrialResult(refused=error.reason)
    except MemoryError:
        limit = f"SERVING_MAX_LOAD_MEMORY_BYTES={task.rules.max_memory_bytes}"
        return None, TrialResult(refused=f"it needs more memory than {limit} to load and predict.")


def _set_limits(rules: LoadingRules) -> None:
    os.nice(TRIAL_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, rules.timeout_s)
    statistics = Path("/proc/self/statm")
    if statistics.exists():  # Linux only: other systems do not enforce this limit
        pages = int(statistics.read_text().split()[0])
        limit = pages * resource.getpagesize() + rules.max_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def end_with_parent() -> None:
    kill_with_parent: Literal[1] = 1  # PR_SET_PDEATHSIG
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the alarm ends the trial
        ctypes.CDLL(None).prctl(kill_with_parent, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
