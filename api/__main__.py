"""`python -m api`: can be told to stop from here on, before `api.process` imports what takes a second."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status, as `api.process.serve` does."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # until uvicorn handles them
        signal.signal(stop, _end)
    from api.process import serve

    return serve()


def _end(number: int, _frame: FrameType | None) -> None:
    # Not by an exception, which whatever is being imported may catch, or tell with its trace. There is nothing to clear
    # up before anything is served; the trial's process ends with this one.
    os._exit(0 if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    STATUS = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would wait for MLflow's threads, which may still be fetching files (a ThreadPoolExecutor, mlflow 3.17).
    os._exit(STATUS)
