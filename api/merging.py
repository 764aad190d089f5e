"""Threads for the blocking part of scoring, where requests that wait at the same time are worked on together.

One lookup and one prediction cost nearly the same for one request as for ten, so merging is what makes the API fast
under load; with one request at a time it costs nothing. Which requests are merged changes no score: only versions
whose predictions were shown to be independent of the rows around them are merged (`Scorer.mergeable`).
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence

from api.errors import Overloaded
from api.stages import Asked, Outcome, RowScores, Run

# Entities worked on together at most: a larger request goes alone, so that it delays no small one.
MOST_ROWS = 256

Waiting = tuple[Asked, "asyncio.Future[RowScores]"]


class Merger:
    """Works off requests for one event loop: a fixed number of threads, a bounded number of requests.

    A caller may give up waiting (a deadline, a cancelled task): a request that was not begun is then dropped, one that
    was keeps its thread until it ends. So a store that hangs costs at most `threads` threads. They are daemons, because
    such a thread must not keep the process from ending; concurrent.futures would join it.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        """Args: how many runs at once, and how many more requests may wait beside as many."""
        self._threads = threads
        self._most = threads + waiting
        self._unfinished = 0
        self._waiting: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"request-{number}", daemon=True).start()

    def stop(self) -> None:
        """Let each thread end after what it is doing now; waits for none of them."""
        for _ in range(self._threads):
            self._waiting.put(None)

    @property
    def full(self) -> bool:
        """Whether `score` would raise Overloaded now."""
        return self._unfinished >= self._most

    async def score(self, asked: Asked) -> RowScores:
        """The scores of one request.

        Raises:
            Overloaded: as many requests are unfinished as may be.
            Exception: what `Scorer` raises for this request.
        """
        if self.full:
            raise Overloaded
        outcome: asyncio.Future[RowScores] = asyncio.get_running_loop().create_future()
        self._unfinished += 1
        self._waiting.put((asked, outcome))
        return await outcome

    def _work(self) -> None:
        put_back: Waiting | None = None
        while first := put_back or self._waiting.get():
            together, put_back, ends = self._take(first)
            self._run(together)
            del first, together  # or they would stay in memory until the next request
            if ends and put_back is None:
                return
            if ends:
                self._waiting.put(None)

    def _take(self, first: Waiting) -> tuple[list[Waiting], Waiting | None, bool]:
        """What waits and may be worked on together with `first`, what was taken too much, and whether to end."""
        together, rows = [first], first[0].rows
        scorer = first[0].scorer
        while scorer.mergeable and rows < MOST_ROWS:
            try:
                another = self._waiting.get_nowait()
            except queue.Empty:
                break
            if another is None:
                return together, None, True
            if another[0].scorer is not scorer or rows + another[0].rows > MOST_ROWS:
                return together, another, False
            together.append(another)
            rows += another[0].rows
        return together, None, False

    def _run(self, together: list[Waiting]) -> None:
        wanted = [each for each in together if not each[1].cancelled()]
        outcomes = Run([asked for asked, _ in wanted])() if wanted else []
        loop = together[0][1].get_loop()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits any more
            loop.call_soon_threadsafe(self._deliver, len(together), wanted, outcomes)

    def _deliver(self, finished: int, wanted: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
        self._unfinished -= finished
        for (_, future), outcome in zip(wanted, outcomes, strict=True):
            if future.cancelled():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
