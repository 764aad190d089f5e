"""A contender's process: `python -m benchmarks.batch.worker TASK ROWS`. It runs the task once per line of input.

It stays alive between rounds, so that it imports everything once, and answers each line with a line of JSON.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO


def main(name: str, rows: int) -> None:
    """Prepare, report `ready`, then answer lines: `run` with time and memory, `outcome` with the task's result."""
    answers = _own_output()
    warnings.simplefilter("ignore")
    if "product" in name:  # before pyarrow, as in the product, because it selects Arrow's allocator
        import scoring  # noqa: F401
    from benchmarks.batch.tasks import make_task

    task = make_task(name, rows)
    task.prepare()
    _write(answers, {"ready": True})
    for line in sys.stdin:
        if line.strip() == "outcome":
            _write(answers, task.outcome())
            continue
        task.reset()
        _reset_peak()
        before, cpu = _memory_mib("VmRSS"), time.process_time()
        began = time.perf_counter()
        task.run()
        took_s = time.perf_counter() - began
        figures = {"seconds": took_s, "cpu_s": time.process_time() - cpu}
        _write(answers, figures | {"before_mib": before, "peak_mib": _memory_mib("VmHWM")})


def _own_output() -> TextIO:
    """Reserve standard output for answers. Output of libraries goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _write(answers: TextIO, content: Mapping[str, object]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _reset_peak() -> None:
    # ru_maxrss can't be reset, and a child process inherits its parent's.
    Path("/proc/self/clear_refs").write_text("5")


def _memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
