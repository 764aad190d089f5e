"""Measure elapsed time."""

import time


class Stopwatch:
    """Starts when it is created."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began
