"""The policy of micro-batching: when a batch starts, and with which requests. Uses no thread, event loop or clock.

Times are in seconds on a monotonic clock. The constants were measured under load (docs/adr/005).
"""

from collections import deque

from api.inference.micro_batch import PendingRequest

# Entities per micro-batch, which take a few milliseconds. A larger request runs alone.
MAX_ROWS = 2000
# While a micro-batch is younger than this, requests wait for its end and are merged. An older one may be stuck in the
# store or the model, so another thread takes the next. With a slow model, two concurrent micro-batches would take turns
# with the interpreter, each half as large: the limit is then 1.5 times their usual duration, up to a maximum.
MIN_AGE_LIMIT_S, MAX_AGE_LIMIT_S = 0.01, 0.05
AGE_LIMIT_FACTOR = 1.5
# Clients that got their responses together send their next requests together. After a micro-batch of several requests,
# the next one waits for them; otherwise they would split into two alternating groups, each half as large. It waits
# until as many requests wait as are expected, or several turns of the event loop bring no more, or the time is up.
MIN_REQUESTS_TO_GATHER = 4
TURNS_WITHOUT_MORE = 4
MAX_GATHER_S = 0.003


class BatchPolicy:
    """The decisions of a `MicroBatcher`, which reports events to it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.max_age_s = MIN_AGE_LIMIT_S
        """Age of the newest micro-batch from which the next one starts in another thread."""
        self.gathering = False
        """Whether no micro-batch starts now because clients are expected to send their next requests."""
        self._started_at = 0.0
        self._expected = 0
        self._gather_until = 0.0
        self._waiting_before = 0
        self._turns_without_more = 0

    def may_start(self, now_s: float, running: int) -> bool:
        """Return whether the next micro-batch may start while `running` of them run."""
        late = now_s - self._started_at >= self.max_age_s
        return not self.gathering and (running == 0 or (late and running < self._threads))

    def may_overlap(self, rows: int, waiting_rows: int, running: int) -> bool:
        """Return whether the next lookup may start after the one for a micro-batch of `rows` has ended.

        It may if the requests of the two could not share a micro-batch, now or when their clients send the next ones.
        """
        return waiting_rows > 0 and rows + waiting_rows > MAX_ROWS and running < self._threads

    def take(self, waiting: deque[PendingRequest], now_s: float) -> list[PendingRequest]:
        """Remove the requests of the next micro-batch from `waiting`, which must not be empty, and return them."""
        self._started_at = now_s
        batch = [waiting.popleft()]
        rows = batch[0].rows
        while waiting and waiting[0].may_join(batch[0]) and rows + waiting[0].rows <= MAX_ROWS:
            rows += waiting[0].rows
            batch.append(waiting.popleft())
        return batch

    def finished(self, requests: int, took_s: float, waiting: int, now_s: float) -> None:
        """Record that a micro-batch of `requests` requests has ended."""
        allowed_s = min(max(MIN_AGE_LIMIT_S, AGE_LIMIT_FACTOR * took_s), MAX_AGE_LIMIT_S)
        self.max_age_s += (allowed_s - self.max_age_s) / 8
        self._expected = requests + waiting
        if requests > 1 and self._expected >= MIN_REQUESTS_TO_GATHER:
            self._gather_until = now_s + MAX_GATHER_S
            if not self.gathering:
                self.gathering, self._waiting_before, self._turns_without_more = True, waiting, 0

    def turn(self, waiting: int, now_s: float) -> None:
        """Record that the event loop has completed a turn while `gathering`, which may end now."""
        self._turns_without_more = 0 if waiting > self._waiting_before else self._turns_without_more + 1
        self._waiting_before = waiting
        complete = waiting >= self._expected or self._turns_without_more > TURNS_WITHOUT_MORE
        self.gathering = not complete and now_s < self._gather_until
