"""Threads for the blocking part of scoring, where requests that wait at the same time are worked on together.

One lookup and one prediction cost nearly the same for one request as for ten, so merging is what makes the API fast
under load; with one request at a time it costs nothing. Which requests are merged changes no score: only versions
whose predictions were shown to be independent of the rows around them are merged (`Scorer.mergeable`).
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence

from api.errors import Overloaded
from api.inference.stages import MicroBatch, PendingRequest, RowScores, Settlement
from api.inference.timers import Timers

# Entities worked on together at most, which takes some milliseconds: a larger request goes alone, and delays no other.
MOST_ROWS = 2000
# While a run is younger than this, requests wait for its end, to be merged; when it takes longer, another thread takes
# them, so that a store or a model that is stuck on one request does not hold up the others. A run of a slow model is
# not stuck: two at once would take turns with the interpreter, each half as large. So a run may take half as long again
# as runs usually do, up to a limit.
MAX_BATCH_AGE_S, MOST_BATCH_AGE_S = 0.01, 0.05
OF_USUAL = 1.5
# Clients that got their answers together ask again together. After a run of several requests the next one waits while
# they come in, or they would fall into two groups that take turns, each half as large: until as many are there as may
# be on their way, so many turns of the event loop have brought no more, or so much time is over.
SEVERAL = 4
TURNS_WITHOUT_MORE = 4
COMING_BACK_S = 0.003

Waiting = tuple[PendingRequest, "asyncio.Future[RowScores]"]


class MicroBatcher:
    """Works off requests for one event loop: a fixed number of threads, a bounded number of requests.

    A caller may give up waiting (a deadline, a cancelled task): a request that was not begun is then dropped, one that
    was keeps its thread until it ends. So a store that hangs costs at most `threads` threads, and as many of the places
    for requests. They are daemons, because such a thread must not keep the process from ending; concurrent.futures
    would join it.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        """Args: how many runs at once, and how many more requests may wait beside as many."""
        self._threads = threads
        self._most = threads + waiting
        self._runs: queue.SimpleQueue[list[Waiting] | None] = queue.SimpleQueue()
        # What follows belongs to the event loop's thread.
        self._waiting: deque[Waiting] = deque()
        self._unfinished = 0
        self._running: list[list[Waiting]] = []
        # Of the runs, those for which nobody waits any more.
        self._abandoned = 0
        self._last_began = 0.0
        self._patience_s = MAX_BATCH_AGE_S
        self._will_begin = self._will_look = False
        # Whether requests are coming back: how many may wait then, and until when.
        self._gathering = False
        self._expected = 0
        self._gather_until = 0.0

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"request-{number}", daemon=True).start()

    def stop(self) -> None:
        """Let each thread end after what waits now; waits for none of them."""
        while self._waiting:
            self._runs.put(self._take())
        for _ in range(self._threads):
            self._runs.put(None)

    @property
    def full(self) -> bool:
        """Whether `score` would raise Overloaded now."""
        return self._unfinished + self._abandoned >= self._most

    async def score(self, asked: PendingRequest, deadlines: Timers) -> RowScores:
        """The scores of one request.

        Raises:
            Overloaded: as many requests are unfinished as may be.
            TimeoutError: there are none yet when a timer of `deadlines` rings.
            Exception: what `Scorer` raises for this request.
        """
        if self.full:
            raise Overloaded
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[RowScores] = loop.create_future()
        mine = asked, outcome
        self._unfinished += 1
        self._waiting.append(mine)
        if not self._gathering:
            self._begin_soon()
        # asyncio.timeout would cancel the whole task, which takes longer to prepare.
        timer = deadlines.start(loop, lambda: self._give_up(mine))
        try:
            return await outcome
        except asyncio.CancelledError:
            if outcome.cancelled():
                self._leave(mine)
            raise
        finally:
            timer.cancel()

    def _give_up(self, mine: Waiting) -> None:
        outcome = mine[1]
        if not outcome.done():
            outcome.set_exception(TimeoutError())
            self._leave(mine)

    def _leave(self, mine: Waiting) -> None:
        """Nobody waits for this request any more, though it is not finished."""
        self._unfinished -= 1
        if mine in self._waiting:
            self._waiting.remove(mine)
        else:
            self._count_forsaken()

    def _count_forsaken(self) -> None:
        self._abandoned = sum(all(outcome.done() for _, outcome in run) for run in self._running)

    def _begin_soon(self) -> None:
        """Begin a run once the event loop has come to all that arrived at the same time."""
        if not self._will_begin:
            self._will_begin = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._will_begin = False
        if not self._waiting:
            return
        late = time.monotonic() - self._last_began >= self._patience_s
        if not self._running or (late and len(self._running) < self._threads):
            self._begin_one()
        if self._waiting:
            self._look_later()

    def _store_is_free(self, rows: int) -> None:
        """The store has answered for a run of so many entities, which are predicted now: it may be asked for the next.

        Only where these could not have been one run, and would not become one when its clients ask again.
        """
        too_many = rows + sum(asked.rows for asked, _ in self._waiting) > MOST_ROWS
        if too_many and self._waiting and len(self._running) < self._threads:
            self._begin_one()

    def _begin_one(self) -> None:
        self._last_began = time.monotonic()
        self._running.append(self._take())
        self._runs.put(self._running[-1])

    def _look_later(self) -> None:
        if not self._will_look:
            self._will_look = True
            asyncio.get_running_loop().call_later(self._patience_s, self._look)

    def _look(self) -> None:
        """Begin with what has waited too long, if there is any."""
        self._will_look = False
        self._begin_soon()

    def _take(self) -> list[Waiting]:
        """What to work on together next."""
        waiting = self._waiting
        together = [waiting.popleft()]
        scorer, rows = together[0][0].scorer, together[0][0].rows
        while waiting and scorer.mergeable and waiting[0][0].scorer is scorer:
            rows += waiting[0][0].rows
            if rows > MOST_ROWS:
                break
            together.append(waiting.popleft())
        return together

    def _work(self) -> None:
        while together := self._runs.get():
            self._run(together)
            del together  # or it would stay in memory until the next request

    def _run(self, together: list[Waiting]) -> None:
        began = time.monotonic()
        wanted = [each for each in together if not each[1].done()]
        loop = together[0][1].get_loop()

        def looked_up() -> None:
            if self._waiting:  # as far as this thread can tell: the event loop looks again
                loop.call_soon_threadsafe(self._store_is_free, sum(asked.rows for asked, _ in wanted))

        try:
            outcomes = MicroBatch([asked for asked, _ in wanted])(looked_up) if wanted else []
        except BaseException as error:  # whatever it is, the thread lives on
            outcomes = [error] * len(wanted)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits any more
            loop.call_soon_threadsafe(self._deliver, together, wanted, outcomes, time.monotonic() - began)

    def _deliver(
        self, run: list[Waiting], wanted: Sequence[Waiting], outcomes: Sequence[Settlement], took_s: float
    ) -> None:
        finished = len(run)
        self._running = [each for each in self._running if each is not run]
        allowed = min(max(MAX_BATCH_AGE_S, OF_USUAL * took_s), MOST_BATCH_AGE_S)
        self._patience_s += (allowed - self._patience_s) / 8
        for (_, future), outcome in zip(wanted, outcomes, strict=True):
            if future.done():
                continue
            self._unfinished -= 1
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if self._abandoned:
            self._count_forsaken()
        self._expected = finished + len(self._waiting)
        if finished > 1 and self._expected >= SEVERAL:
            self._gather_until = time.monotonic() + COMING_BACK_S
            if not self._gathering:
                self._gathering = True
                asyncio.get_running_loop().call_soon(self._gather, len(self._waiting), 0)
        elif self._waiting:
            self._begin_soon()

    def _gather(self, before: int, turns_without_more: int) -> None:
        waiting = len(self._waiting)
        turns_without_more = 0 if waiting > before else turns_without_more + 1
        complete = waiting >= self._expected or turns_without_more > TURNS_WITHOUT_MORE
        if complete or time.monotonic() >= self._gather_until:
            self._gathering = False
            self._begin()
        else:
            asyncio.get_running_loop().call_soon(self._gather, waiting, turns_without_more)
