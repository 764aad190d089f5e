"""A version is loaded on trial in a process of its own first: what crashes, hangs or grows there harms nobody else."""

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from scoring.errors import ModelRefused, first_line
from scoring.models.admission import ValidationReport
from scoring.models.model_files import ModelFiles, version_folder
from scoring.models.trial_process import (
    GOLDEN_ROWS,
    KNOWN_ROWS,
    LAST_WORDS,
    NO_ROOM,
    ORDER,
    OUTCOME,
    PREDICTION,
    Order,
    TrialResult,
    in_new_process,
    read_rows,
    write_rows,
)
from scoring.settings import Settings

RunTrial = Callable[[Path, Path, float], int | None]


def validate_in_trial(
    files: ModelFiles, known_rows: pa.Table | None, settings: Settings, run: RunTrial = in_new_process
) -> ValidationReport:
    """`admission.validate` in a process of its own, within the settings' limits of memory and time.

    Args:
        files: the version's.
        known_rows: complete feature vectors to use where it brings no input example; None for none.
        settings: the limits, and what may be loaded.
        run: `trial_process.in_new_process`, or another way to such a process.

    Raises:
        ModelRefused: what `validate` refuses, and what crashes, takes too long or too much memory.
        NoRoom: this machine has none for what a trial writes.
    """
    order = Order(
        files.version,
        settings.output_column,
        settings.model_formats,
        settings.skops_trusted_types,
        settings.max_load_memory_bytes,
        settings.load_timeout_s,
    )
    with version_folder() as folder:
        (folder / ORDER).write_bytes(msgspec.json.encode(order))
        if known_rows is not None:
            write_rows(folder / KNOWN_ROWS, known_rows)
        status = run(files.folder.resolve(), folder, settings.load_timeout_s)
        if status is None or status == -signal.SIGALRM:
            raise ModelRefused(
                str(files.version),
                f"it did not load and predict within SERVING_LOAD_TIMEOUT_S={settings.load_timeout_s:g} seconds.",
            )
        if status == NO_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if status != 0 or not (folder / OUTCOME).exists():  # a model's code may end the process as if all were well
            how = _how(status, (folder / LAST_WORDS).read_text(errors="replace"))
            raise ModelRefused(str(files.version), f"it crashed while it was loaded on trial ({how}).")
        return _read_report(files, folder)


def _read_report(files: ModelFiles, folder: Path) -> ValidationReport:
    outcome = msgspec.json.decode((folder / OUTCOME).read_bytes(), type=TrialResult)
    if outcome.refused is not None:
        raise ModelRefused(str(files.version), outcome.refused)
    rows, predictions = read_rows(folder / GOLDEN_ROWS), None
    if outcome.predicted:
        predictions = np.array(rows[PREDICTION])
        rows = rows.drop_columns(PREDICTION)
    return ValidationReport(rows, predictions, outcome.source, outcome.as_array, outcome.same_in_any_batch)


def _how(status: int, words: str) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    lines = words.strip().splitlines()
    return first_line(lines[-1]) if lines else f"status {status}"
