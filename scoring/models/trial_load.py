"""Validates a version in a trial process, so that a crash, a hang or a lack of memory does not affect the service."""

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from scoring.errors import ModelRefused
from scoring.foreign_errors import first_line
from scoring.models.admission import ValidationReport
from scoring.models.flavors.flavor import check_files
from scoring.models.model_files import ModelFiles, version_folder
from scoring.models.trial_process import (
    NO_ROOM,
    RESULT,
    STDERR,
    TASK,
    TrialResult,
    TrialTask,
    decode,
    encode,
    in_new_process,
)

RunTrial = Callable[[Path, Path, float], int | None]


def validate_in_trial(
    files: ModelFiles, known_rows: pa.Table | None = None, run: RunTrial = in_new_process
) -> ValidationReport:
    """Validate a version in a separate process, within the memory and time limits of its rules.

    Args:
        files: the version's files.
        known_rows: complete feature vectors to use if the version has no input example.
        run: starts the process: `trial_process.in_new_process`, or another function like it.

    Raises:
        ModelRefused: `validate` refuses it, or it crashes, or takes too much time or memory.
        NoRoom: this machine has no room for the trial's files.
    """
    check_files(files)  # before a process starts
    model, timeout_s = str(files.version), files.rules.timeout_s
    with version_folder() as folder:
        (folder / TASK).write_bytes(encode(TrialTask(files.version, files.rules, known_rows)))
        status = run(files.folder.resolve(), folder, timeout_s)
        if status is None or status == -signal.SIGALRM:
            reason = f"it did not load and predict within SERVING_LOAD_TIMEOUT_S={timeout_s:g} seconds."
            raise ModelRefused(model, reason)
        if status == NO_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if status != 0 or not (folder / RESULT).exists():  # a model's code may exit with status 0
            how = _describe_exit(status, (folder / STDERR).read_text(errors="replace"))
            raise ModelRefused(model, f"it crashed during its trial ({how}).")
        result: TrialResult = decode(folder / RESULT, TrialResult)
        if result.report is None:
            raise ModelRefused(model, str(result.refused))
        return result.report


def _describe_exit(status: int, stderr: str) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    lines = stderr.strip().splitlines()
    return first_line(lines[-1]) if lines else f"status {status}"
