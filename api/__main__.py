"""`python -m api`. Handles stop signals from the first line on, before `api.process` spends a second on imports."""

import os
import shutil
import signal
import sys
from types import FrameType

FEASTS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status, as `api.process.serve` does."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # until uvicorn handles them
        signal.signal(stop, _end)
    from api.process import serve

    return serve()


def _end(number: int, _frame: FrameType | None) -> None:
    # Not by an exception: a module that is being imported may catch it or print its traceback. Nothing needs cleaning
    # up before the API serves; the trial's process ends with this one.
    os._exit(0 if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    INHERITED = os.environ.get(FEASTS_FOLDER)
    STATUS = main()
    # Feast (0.67) makes a folder when it is imported, which it removes at an end that does not come here.
    if os.environ.get(FEASTS_FOLDER) not in {None, INHERITED}:
        shutil.rmtree(os.environ[FEASTS_FOLDER], ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would wait for MLflow's threads, which may still be fetching files (a ThreadPoolExecutor, mlflow 3.17).
    os._exit(STATUS)
