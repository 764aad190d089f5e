"""Timers that all run equally long: thousands of them cost the event loop one."""

import asyncio
from collections import deque
from collections.abc import Callable


class Timer:
    """One of `Timers`, until it rings or is cancelled."""

    __slots__ = ("due", "ring")

    def __init__(self, due: float, ring: Callable[[], None]) -> None:
        """Args: when it rings, by the event loop's clock, and what then."""
        self.due = due
        self.ring: Callable[[], None] | None = ring

    def cancel(self) -> None:
        """It will not ring."""
        self.ring = None


class Timers:
    """Timers of one event loop and of one length, so that they end in the order in which they began.

    A timer of the event loop's own takes three times as long to be made and cancelled, which nearly all are (uvloop
    0.23). Each request has two.
    """

    def __init__(self, length_s: float) -> None:
        """Args: after how many seconds each rings."""
        self._length_s = length_s
        self._running: deque[Timer] = deque()
        self._watched = False

    def start(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> Timer:
        """A timer that calls `ring` in `loop`."""
        running = self._running
        while running and running[0].ring is None:
            running.popleft()
        timer = Timer(loop.time() + self._length_s, ring)
        running.append(timer)
        if not self._watched:
            self._watch(loop)
        return timer

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watched = True
        loop.call_at(self._running[0].due, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watched = False
        running, now = self._running, loop.time()
        while running and (running[0].ring is None or running[0].due <= now):
            ring = running.popleft().ring
            if ring is not None:
                ring()
        if running:
            self._watch(loop)
