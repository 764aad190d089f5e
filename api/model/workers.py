"""Threads for blocking work: a fixed number of them, with a bounded queue before them."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from api.errors import Overloaded

T = TypeVar("T")


class Workers:
    """Runs blocking functions for one event loop.

    A caller may give up waiting (a deadline, a cancelled task): work that has not begun is then dropped, work that has
    begun keeps its thread until it ends. So a store that hangs costs at most `threads` threads. They are daemons,
    because such a thread must not keep the process from ending; concurrent.futures would join it.

    Args:
        name: what the threads are called.
        threads: how many calls run at once.
        waiting: how many more may wait for a thread.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._name = name
        self._threads = threads
        self._most = threads + waiting
        self._unfinished = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()

    def stop(self) -> None:
        """Let each thread end after what it is doing now; waits for none of them."""
        for _ in range(self._threads):
            self._calls.put(None)

    @property
    def full(self) -> bool:
        """Whether `run` would raise Overloaded now."""
        return self._unfinished >= self._most

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises, from one of the threads.

        Raises:
            Overloaded: no thread is free and as many calls wait as may wait.
        """
        if self.full:
            raise Overloaded
        self._unfinished += 1
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(function, outcome, loop, self._finished))
        return await outcome

    def _finished(self) -> None:
        self._unfinished -= 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()
            del call  # or its result would stay in memory until the next call


class _Call:
    def __init__(
        self,
        function: Callable[[], Any],
        outcome: asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[], None],
    ) -> None:
        self._function = function
        self._outcome = outcome
        self._loop = loop
        self._finished = finished

    def make(self) -> None:
        value, error = None, None
        if not self._outcome.cancelled():
            try:
                value = self._function()
            except BaseException as raised:  # it belongs to the caller, whatever it is; the thread lives on
                error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver, value, error)

    def _deliver(self, value: Any, error: BaseException | None) -> None:
        self._finished()
        if self._outcome.cancelled():
            return
        if error is None:
            self._outcome.set_result(value)
        else:
            self._outcome.set_exception(error)
