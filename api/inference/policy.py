"""When a micro-batch starts and which of the waiting requests it takes: pure decisions, without thread, loop or clock.

Times are seconds on a monotonic clock. The figures were measured under load (docs/adr/005).
"""

from collections import deque

from api.inference.micro_batch import PendingRequest

# Entities in a micro-batch, which take some milliseconds. A larger request runs alone and delays no other.
MAX_ROWS = 2000
# While a micro-batch is younger than this, requests wait for its end and are merged. One that takes longer may be stuck
# in the store or the model, so another thread takes the next. With a slow model, two at once would only take turns
# with the interpreter, each half as large: a micro-batch may take half as long again as they usually do, up to a limit.
MAX_BATCH_AGE_S, LONGEST_BATCH_AGE_S = 0.01, 0.05
OF_USUAL = 1.5
# Clients that got their answers together send their next requests together. After a micro-batch of several requests the
# next one waits for them, or they would split into two groups that take turns, each half as large. It waits until as
# many requests wait as are expected, until some turns of the event loop have brought no more, or until time is up.
SEVERAL = 4
TURNS_WITHOUT_MORE = 4
RETURN_S = 0.003


class BatchPolicy:
    """The decisions of a `MicroBatcher`, which reports what happens and asks what to do."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.max_age_s = MAX_BATCH_AGE_S
        """How old a micro-batch may become before the next one starts beside it."""
        self.gathering = False
        """Whether clients are expected to return, so that no micro-batch starts now."""
        self._started_at = 0.0
        self._expected = 0
        self._gather_until = 0.0
        self._waiting_before = 0
        self._turns_without_more = 0

    def may_start(self, now_s: float, running: int) -> bool:
        """Whether the next micro-batch may start beside those that run."""
        late = now_s - self._started_at >= self.max_age_s
        return not self.gathering and (running == 0 or (late and running < self._threads))

    def may_overlap(self, rows: int, waiting_rows: int, running: int) -> bool:
        """Whether the next lookup may start, now that the one for a micro-batch of `rows` has finished.

        Only if these requests and the waiting ones could not be one micro-batch, now or when their clients return.
        """
        return waiting_rows > 0 and rows + waiting_rows > MAX_ROWS and running < self._threads

    def take(self, waiting: deque[PendingRequest], now_s: float) -> list[PendingRequest]:
        """Remove the requests of the next micro-batch from the waiting ones, of which there is at least one."""
        self._started_at = now_s
        batch = [waiting.popleft()]
        rows = batch[0].rows
        while waiting and waiting[0].may_join(batch[0]) and rows + waiting[0].rows <= MAX_ROWS:
            rows += waiting[0].rows
            batch.append(waiting.popleft())
        return batch

    def finished(self, requests: int, took_s: float, waiting: int, now_s: float) -> None:
        """A micro-batch has ended, and its clients have their answers."""
        allowed_s = min(max(MAX_BATCH_AGE_S, OF_USUAL * took_s), LONGEST_BATCH_AGE_S)
        self.max_age_s += (allowed_s - self.max_age_s) / 8
        self._expected = requests + waiting
        if requests > 1 and self._expected >= SEVERAL:
            self._gather_until = now_s + RETURN_S
            if not self.gathering:
                self.gathering, self._waiting_before, self._turns_without_more = True, waiting, 0

    def turn(self, waiting: int, now_s: float) -> None:
        """The event loop has completed a turn while `gathering`, which may end now."""
        self._turns_without_more = 0 if waiting > self._waiting_before else self._turns_without_more + 1
        self._waiting_before = waiting
        complete = waiting >= self._expected or self._turns_without_more > TURNS_WITHOUT_MORE
        self.gathering = not complete and now_s < self._gather_until
