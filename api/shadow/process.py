"""The process in which a challenger predicts: one that hangs, crashes or uses too much memory changes no answer.

It is its trial process (`scoring.models.trial_process`), which goes on after the trial and keeps its memory limit. It
ends with the API: by a signal of the kernel, or when the pipe between them is closed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import pyarrow as pa

from scoring.errors import PredictionFailed
from scoring.foreign_errors import first_line
from scoring.imports import import_for_serving, import_pyfunc
from scoring.models.model import Model
from scoring.models.trial_process import (
    IMPORT_TIMEOUT_S,
    STDERR,
    decode_bytes,
    encode,
    end_with_parent,
    kill_group,
    run_trial,
    start,
)
from scoring.predict import Policy, Scores, score

MODULE = "api.shadow.process"
EXTRA_NICENESS = 5  # in addition to TRIAL_NICENESS, which `run_trial` adds
# The kernel ends the process with the highest value first if the machine or the container has no memory left.
OOM_SCORE = "1000"


class Prediction(msgspec.Struct, frozen=True):
    """The message from the API: rows to score, by a policy."""

    number: int
    """Of the messages to this process."""
    vectors: pa.Table
    reasons: pa.Table
    """One column, as in `OnlineVectors.reasons`."""
    policy: Policy
    search_s: float


class Predicted(msgspec.Struct, frozen=True):
    """The message to the API: what `score` returned, or the problem of the PredictionFailed that it raised."""

    number: int
    """That of the message which it answers."""
    outputs: pa.Table | None = None
    reasons: pa.Table | None = None
    failure: str | None = None


class ProcessEnded(PredictionFailed):
    """The process has ended, or was killed because it did not answer in time or sent something else."""


class ChallengerProcess:
    """The process of one version, as the API sees it. It starts with `trial`."""

    def __init__(self, model: str, policy: Policy, limit_s: float) -> None:
        """Start nothing yet.

        Args:
            model: name of the version, for messages.
            policy: what to do with incomplete rows.
            limit_s: time limit of a prediction, in seconds.
        """
        self._model, self._policy, self._limit_s = model, policy, limit_s
        self._number = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def trial(self, model_folder: Path, folder: Path, timeout_s: float) -> int | None:
        """Start the process with the trial. The arguments and result are those of `trial_process.in_new_process`."""
        self._pipe, there = Pipe()
        arguments = [MODULE, str(model_folder), str(folder), str(there.fileno())]
        with (folder / STDERR).open("wb") as stderr, there:
            self._process = start(arguments, stderr, (there.fileno(),))
        try:
            with self._limited(timeout_s + IMPORT_TIMEOUT_S):
                self._pipe.recv_bytes()
        except (EOFError, OSError):
            return self._end()
        return 0

    def score(self, vectors: pa.Table, reasons: pa.Array, outputs: pa.Schema) -> Scores:
        """Return the scores of feature vectors, as `scoring.predict.score`. Called by one thread at a time.

        Args:
            vectors: as in `scoring.predict.score`.
            reasons: as in `scoring.predict.score`.
            outputs: the outputs that the version returns.

        Raises:
            ProcessEnded: there is no answer, and there will be none.
            PredictionFailed: the model failed.
        """
        self._number += 1
        given = pa.table({"reason": reasons})
        request = encode(Prediction(self._number, vectors, given, self._policy, self._limit_s / 2))
        began = time.monotonic()
        try:
            with self._limited(self._limit_s):
                self._pipe.send_bytes(request)
                message = self._pipe.recv_bytes()
        except (EOFError, OSError, MemoryError):  # the last one if the length is nonsense
            in_time = time.monotonic() - began < self._limit_s
            ended = f"its process ended ({_exit_of(self._end())})"
            late = f"it gave no answer within {self._limit_s:g} seconds"
            raise ProcessEnded(self._model, ended if in_time else late) from None
        try:
            answer: Predicted | None = decode_bytes(message, Predicted)
        except Exception:  # msgspec and Arrow raise many
            answer = None
        if answer is None or not _answers(answer, self._number, outputs, given):
            self.close()
            raise ProcessEnded(self._model, "its process sent something other than the answer")
        failure = None if answer.failure is None else PredictionFailed(self._model, answer.failure)
        if answer.outputs is None or answer.reasons is None:
            raise failure or PredictionFailed(self._model, "it returned nothing")
        return Scores(answer.outputs, answer.reasons["reason"].combine_chunks(), failure)

    @contextlib.contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """Close after some seconds, which ends sending and receiving."""
        timer = threading.Timer(seconds, self.close)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> int | None:
        """Close once the pipe has ended, which happens just before the process ends."""
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        return self.close()

    def close(self) -> int | None:
        """End the process and all that it started. Return its exit status if it had ended by itself, else None."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return None
            status = process.poll()
            kill_group(process.pid)
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as pipe:
                pipe.shutdown(socket.SHUT_RDWR)  # a process that has left the group may hold the other end
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            return status


def _answers(answer: Predicted, number: int, outputs: pa.Schema, reasons: pa.Table) -> bool:
    """Return whether it is the answer to message `number`, of rows with these reasons."""
    if answer.outputs is None or answer.reasons is None:
        return answer.number == number and answer.failure is not None
    schemas, rows = (answer.outputs.schema, answer.reasons.schema), {answer.outputs.num_rows, answer.reasons.num_rows}
    return answer.number == number and schemas == (outputs, reasons.schema) and rows == {reasons.num_rows}


def _exit_of(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    return "killed" if status is None else f"status {status}"


def main() -> int:
    """Run a trial, then predict: `python -m api.shadow.process MODEL_FOLDER TASK_FOLDER DESCRIPTOR_OF_THE_PIPE`."""
    end_with_parent()
    os.nice(EXTRA_NICENESS)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    pipe = Connection(int(sys.argv[3]))
    os.set_inheritable(pipe.fileno(), False)
    import_for_serving()
    import_pyfunc()
    status, model = run_trial(Path(sys.argv[1]), Path(sys.argv[2]))
    if model is None:
        return status
    signal.setitimer(signal.ITIMER_REAL, 0)  # the trial's
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the file is gone, and would grow
    with contextlib.suppress(EOFError, OSError):  # the API has ended, or needs no challenger any more
        pipe.send_bytes(b"")
        while True:
            pipe.send_bytes(encode(_predict(model, decode_bytes(pipe.recv_bytes(), Prediction))))
    return 0


def _predict(model: Model, request: Prediction) -> Predicted:
    try:
        reasons = request.reasons["reason"].combine_chunks()
        scores = score(model, request.vectors, reasons, request.policy, lambda row: f"row {row}", request.search_s)
    except (Exception, SystemExit) as error:  # a model may raise anything
        problem = error.problem if isinstance(error, PredictionFailed) else f"{type(error).__name__}"
        return Predicted(request.number, failure=first_line(problem))
    failure = None if scores.failure is None else scores.failure.problem.removesuffix("; see the log")
    return Predicted(request.number, scores.outputs, pa.table({"reason": scores.reasons}), failure)


if __name__ == "__main__":
    sys.exit(main())
