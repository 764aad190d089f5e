"""Runs `python -m api`, and writes which modules call which while it handles requests.

Between two SIGUSR1, it records calls of the event loop's thread. At the second one, it writes {module: [modules that
call it]} as JSON, with paths relative to the repository, to the file that TRACE_FILE names.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = str(Path(__file__).resolve().parents[2]) + os.sep
PACKAGES = tuple(ROOT + package + os.sep for package in ("api", "scoring"))


class Trace:
    """Calls between modules of this project."""

    def __init__(self) -> None:
        self._on = False
        self._callers: dict[str, set[str]] = {}

    def toggle(self, _number: int, _frame: FrameType | None) -> None:
        """Start recording, or write what was recorded."""
        self._on = not self._on
        if not self._on:
            file = Path(os.environ["TRACE_FILE"])
            part = file.with_suffix(".part")
            part.write_text(json.dumps({module: sorted(callers) for module, callers in self._callers.items()}))
            part.rename(file)
            self._callers.clear()

    def record(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Record a call; a profile function."""
        called = frame.f_code.co_filename
        if self._on and event == "call" and called.startswith(PACKAGES):
            caller = frame.f_back
            while caller is not None and not caller.f_code.co_filename.startswith(PACKAGES):
                caller = caller.f_back
            callers = self._callers.setdefault(called.removeprefix(ROOT), set())
            if caller is not None and caller.f_code.co_filename != called:
                callers.add(caller.f_code.co_filename.removeprefix(ROOT))


if __name__ == "__main__":
    trace = Trace()
    signal.signal(signal.SIGUSR1, trace.toggle)
    sys.setprofile(trace.record)
    sys.argv = ["api"]
    runpy.run_module("api", run_name="__main__", alter_sys=True)
