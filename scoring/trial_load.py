"""A version is loaded on trial in a process of its own first: what crashes, hangs or grows there harms nobody else.

It is no prison: whoever may run code in that process (an allowed pickle) may do there what this user may do.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa

from scoring.admission import Proof, RowSource, prove
from scoring.errors import ModelRefused, first_line
from scoring.files import scratch_folder
from scoring.model_files import ModelFiles, read_model_files
from scoring.registry import ModelVersion
from scoring.settings import ModelFormat, Settings

# Starting an interpreter and importing scikit-learn and MLflow: 5 s on a quiet machine, more beside a busy service.
IMPORTS_WITHIN_S = 120.0
NICENESS = 5
PREDICTION = "__prediction"


class Order(msgspec.Struct, frozen=True):
    """What the trial is told on its standard input, as JSON."""

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


def prove_on_trial(files: ModelFiles, known_rows: pa.Table | None, settings: Settings) -> Proof:
    """`admission.prove` in a process of its own, within the settings' limits of memory and time.

    Raises:
        ModelRefused: what `prove` refuses, and what crashes, takes too long or too much memory.
    """
    order = Order(
        files.version,
        settings.output_column,
        settings.model_formats,
        settings.skops_trusted_types,
        settings.max_load_memory_bytes,
        settings.load_timeout_s,
    )
    root = str(Path(__file__).parent.parent)
    # Feast, imported in the calling process, leaves a variable behind that would move Prometheus clients elsewhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    # Each further arena would reserve address space by the core, and so take from what the model may have.
    environment["MALLOC_ARENA_MAX"] = "2"
    with scratch_folder() as folder:
        if known_rows is not None:
            _write_rows(folder / "known.arrow", known_rows)
        with subprocess.Popen(
            [sys.executable, "-m", "scoring.trial_load", str(files.folder.resolve()), str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # what it sends to its process group stays there
        ) as trial:
            _import_what_reads_models()  # the caller needs it next, and waits anyway
            try:
                _, words = trial.communicate(msgspec.json.encode(order), settings.load_timeout_s + IMPORTS_WITHIN_S)
            except subprocess.TimeoutExpired:
                raise _too_slow(files.version, settings) from None
            finally:
                trial.kill()
        if trial.returncode == -signal.SIGALRM:
            raise _too_slow(files.version, settings)
        if trial.returncode != 0:
            how = _how(trial.returncode, words.decode(errors="replace"))
            raise ModelRefused(str(files.version), f"it crashed while it was loaded on trial ({how}).")
        return _read_proof(files, folder)


def main() -> int:
    """The trial itself: `python -m scoring.trial_load <model's folder> <folder for the outcome>`, an Order on stdin."""
    model_folder, folder = Path(sys.argv[1]), Path(sys.argv[2])
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    os.nice(NICENESS)
    _end_with_the_caller()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _import_what_predicts()
    _limit(order)
    settings = Settings(
        model_name=order.version.name,
        output_column=order.output_column,
        model_formats=order.model_formats,
        skops_trusted_types=order.skops_trusted_types,
    )
    known = folder / "known.arrow"
    try:
        files = read_model_files(order.version, model_folder, settings)
        _, proof = prove(files, _read_rows(known) if known.exists() else None)
        outcome = Outcome(None, proof.source, proof.predictions is not None, proof.as_array, proof.same_in_any_batch)
        rows = proof.rows
        if proof.predictions is not None:
            rows = rows.append_column(PREDICTION, pa.array(proof.predictions))
        _write_rows(folder / "golden.arrow", rows)
    except ModelRefused as error:
        outcome = Outcome(refused=error.reason)
    except MemoryError:
        outcome = Outcome(refused=f"it needs more than SERVING_MAX_LOAD_MEMORY_BYTES={order.memory_bytes} to predict.")
    (folder / "outcome.json").write_bytes(msgspec.json.encode(outcome))
    return 0


def _import_what_reads_models() -> None:
    import pandas
    import skops.io

    del pandas, skops


def _import_what_predicts() -> None:
    """Before the limits are set, so that they count what the model takes and nothing else."""
    import mlflow.pyfunc
    import mlflow.sklearn

    _import_what_reads_models()
    del mlflow


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


def _read_proof(files: ModelFiles, folder: Path) -> Proof:
    outcome = msgspec.json.decode((folder / "outcome.json").read_bytes(), type=Outcome)
    if outcome.refused is not None:
        raise ModelRefused(str(files.version), outcome.refused)
    rows, predictions = _read_rows(folder / "golden.arrow"), None
    if outcome.predicted:
        predictions = np.array(rows[PREDICTION])
        rows = rows.drop_columns(PREDICTION)
    return Proof(rows, predictions, outcome.source, outcome.as_array, outcome.same_in_any_batch)


def _write_rows(file: Path, rows: pa.Table) -> None:
    with pa.ipc.new_file(str(file), rows.schema) as writer:
        writer.write_table(rows)


def _read_rows(file: Path) -> pa.Table:
    with pa.ipc.open_file(str(file)) as reader:
        return reader.read_all()


def _too_slow(version: ModelVersion, settings: Settings) -> ModelRefused:
    return ModelRefused(
        str(version), f"it did not load and predict within SERVING_LOAD_TIMEOUT_S={settings.load_timeout_s:g} seconds."
    )


def _how(status: int, words: str) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    lines = words.strip().splitlines()
    return first_line(lines[-1]) if lines else f"status {status}"


if __name__ == "__main__":
    sys.exit(main())
