"""Worker threads for the blocking part of scoring. Requests that wait at the same time share a micro-batch.

One lookup and one prediction take nearly as long for one request as for ten, so merging makes the API fast under load
and costs nothing otherwise. It changes no score: only requests to versions whose predictions do not depend on the other
rows are merged (`Scorer.mergeable`).

The threads are not those of a ThreadPoolExecutor. Its futures take 6 µs more per micro-batch, 1.3 % of the processor
time of a single request (Python 3.11), and it joins its threads when the process ends, even if a store hangs.

From a request to its scores (`->` is a later turn of the event loop, `=>` another thread):

    score -> _start_next, _start_batch, _send -> receive, MicroBatch.finish, _deliver      without a thread
    score -> _start_next, _start_batch => _work, _run, MicroBatch.run -> _deliver          otherwise
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence

from api.errors import Overloaded
from api.inference.batch_policy import BatchPolicy
from api.inference.micro_batch import MicroBatch, PendingRequest, RequestResult
from api.model.scorer import RowScores

# Without a thread, the event loop sends the commands of a small micro-batch to the store and calculates the scores when
# the replies arrive, which takes less time than with a thread. If they do not arrive soon, a thread starts again.
MAX_ROWS_WITHOUT_THREAD = 100
HAND_OVER_S = 0.01


class MicroBatcher:
    """Scores requests for one event loop, with a fixed number of threads and a bounded number of unfinished requests.

    A caller may give up, at its deadline or because its task is cancelled. A request that has not started is then
    dropped; one that has started keeps its thread until it ends. So a store that hangs occupies at most `threads`
    threads and as many of the unfinished requests.
    """

    def __init__(self, threads: int, waiting: int, deadline_s: float) -> None:
        """Allow `threads` micro-batches at once, and `waiting` more requests. Each has `deadline_s` seconds."""
        self._threads = threads
        self._max_unfinished = threads + waiting
        self.deadline_s = deadline_s
        self._batches: queue.SimpleQueue[list[PendingRequest] | None] = queue.SimpleQueue()
        # Everything below is used by the event loop's thread only.
        self._policy = BatchPolicy(threads)
        self._waiting: deque[PendingRequest] = deque()
        self._running: list[list[PendingRequest]] = []
        self._unfinished = 0
        self._abandoned = 0
        """Number of running micro-batches that no caller waits for."""
        self._start_scheduled = self._check_scheduled = False
        # In the order of their deadlines. One timer for all: to set and cancel one takes 3 µs (uvloop 0.22).
        self._by_deadline: deque[PendingRequest] = deque()
        self._timer_set = False

    def start(self) -> None:
        """Start the threads. Called on the event loop, like all other methods."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"request-{number}", daemon=True).start()

    def stop(self) -> None:
        """Stop the threads after the queued requests, without blocking."""
        while self._waiting:
            self._batches.put(self._policy.take(self._waiting, time.monotonic()))
        for _ in range(self._threads):
            self._batches.put(None)

    @property
    def full(self) -> bool:
        """Whether `score` would raise Overloaded now."""
        return self._unfinished + self._abandoned >= self._max_unfinished

    @property
    def waiting(self) -> bool:
        """Whether a request waits to start. Any thread may ask."""
        return bool(self._waiting)

    async def score(self, request: PendingRequest, deadline_s: float | None = None) -> RowScores:
        """Score one request, within `deadline_s` seconds if it has a deadline of its own.

        Raises:
            Overloaded: too many requests are unfinished.
            TimeoutError: there are no scores at the deadline.
            Exception: what `Scorer` raises for this request.
        """
        if self.full:
            raise Overloaded
        result: asyncio.Future[RowScores] = self._loop.create_future()
        request.result = result
        self._unfinished += 1
        self._waiting.append(request)
        if not self._policy.gathering:
            self._schedule_start()
        if deadline_s is not None:
            timer = self._loop.call_later(deadline_s, self._give_up, request)
            result.add_done_callback(lambda _: timer.cancel())
        else:
            self._by_deadline.append(request)
            if not self._timer_set:
                self._timer_set = True
                self._loop.call_later(self.deadline_s, self._expire)
        try:
            return await result
        except asyncio.CancelledError:
            if result.cancelled():
                self._leave(request)
            raise

    def _expire(self) -> None:
        """End the requests whose deadline is over, and set the timer for the next one."""
        now, requests = time.perf_counter(), self._by_deadline
        while requests and (requests[0].abandoned or requests[0].queued_at + self.deadline_s <= now):
            self._give_up(requests.popleft())
        self._timer_set = bool(requests)
        if requests:
            self._loop.call_later(requests[0].queued_at + self.deadline_s - now, self._expire)

    def _give_up(self, request: PendingRequest) -> None:
        if request.result is not None and not request.result.done():
            request.result.set_exception(TimeoutError())
            self._leave(request)

    def _leave(self, request: PendingRequest) -> None:
        """Record that no caller waits for this unfinished request."""
        self._unfinished -= 1
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._count_abandoned()

    def _count_abandoned(self) -> None:
        self._abandoned = sum(all(request.abandoned for request in batch) for batch in self._running)

    def _schedule_start(self) -> None:
        """Start a micro-batch once the event loop has processed everything that arrived at the same time."""
        if not self._start_scheduled:
            self._start_scheduled = True
            self._loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        self._start_scheduled = False
        if self._waiting and self._policy.may_start(time.monotonic(), len(self._running)):
            self._start_batch()
        if self._waiting and not self._check_scheduled:
            self._check_scheduled = True
            self._loop.call_later(self._policy.max_age_s, self._check)

    def _check(self) -> None:
        self._check_scheduled = False
        self._schedule_start()

    def _start_batch(self) -> None:
        batch = self._policy.take(self._waiting, time.monotonic())
        self._running.append(batch)
        alone = len(self._running) == 1 and sum(request.rows for request in batch) <= MAX_ROWS_WITHOUT_THREAD
        if not (alone and self._send(batch)):
            self._batches.put(batch)

    def _send(self, batch: list[PendingRequest]) -> bool:
        """Try to score a micro-batch without a thread. Return whether its commands were sent to the store."""
        try:
            micro_batch = MicroBatch(batch)
            sent = micro_batch.send()
        except Exception:  # the thread finds out whose it is
            sent = None
        if sent is None:
            return False

        def end() -> None:
            timer.cancel()
            self._loop.remove_reader(sent.fileno)

        def hand_over() -> None:
            end()
            sent.give_up()
            self._batches.put(batch)

        def receive() -> None:
            try:
                read = sent.receive()
            except Exception:  # the thread reads again, and reports it
                hand_over()
                return
            if read is None:
                return
            end()
            try:
                results = micro_batch.finish(read)
            except Exception:  # the thread finds out whose it is
                self._batches.put(batch)
                return
            self._deliver(batch, batch, results, time.perf_counter() - micro_batch.started_at)

        timer = self._loop.call_later(HAND_OVER_S, hand_over)
        self._loop.add_reader(sent.fileno, receive)
        return True

    def _overlap(self, rows: int) -> None:
        """Start the next micro-batch if useful. Called when the lookup for `rows` entities has ended."""
        if self._policy.may_overlap(rows, sum(request.rows for request in self._waiting), len(self._running)):
            self._start_batch()

    def _work(self) -> None:
        while batch := self._batches.get():
            self._run(batch)
            del batch  # otherwise it would stay in memory until the next one

    def _run(self, batch: list[PendingRequest]) -> None:
        started_at = time.monotonic()
        wanted = [request for request in batch if not request.abandoned]

        def looked_up() -> None:
            if self._waiting:  # read in a worker thread: the event loop checks again
                self._loop.call_soon_threadsafe(self._overlap, sum(request.rows for request in wanted))

        try:
            results = MicroBatch(wanted).run(looked_up) if wanted else []
        except BaseException as error:  # the thread must survive any error
            results = [error] * len(wanted)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._deliver, batch, wanted, results, time.monotonic() - started_at)

    def _deliver(
        self,
        batch: list[PendingRequest],
        wanted: Sequence[PendingRequest],
        results: Sequence[RequestResult],
        took_s: float,
    ) -> None:
        self._running = [each for each in self._running if each is not batch]
        for request, result in zip(wanted, results, strict=True):
            if request.result is None or request.abandoned:
                continue
            self._unfinished -= 1
            if isinstance(result, BaseException):
                request.result.set_exception(result)
            else:
                request.result.set_result(result)
        while self._by_deadline and self._by_deadline[0].abandoned:
            self._by_deadline.popleft()
        if self._abandoned:
            self._count_abandoned()
        gathering = self._policy.gathering
        self._policy.finished(len(batch), took_s, len(self._waiting), time.monotonic())
        if self._policy.gathering and not gathering:
            self._loop.call_soon(self._gather)
        elif self._waiting and not self._policy.gathering:
            self._schedule_start()

    def _gather(self) -> None:
        self._policy.turn(len(self._waiting), time.monotonic())
        if self._policy.gathering:
            self._loop.call_soon(self._gather)
        else:
            self._start_next()
