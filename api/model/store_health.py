"""The health of the feature store: a circuit breaker for requests, and a probe in the background.

After several failures in a row, requests are refused without a lookup. The circuit breakers on PyPI (pybreaker,
aiobreaker, purgatory) test a half-open circuit with a caller's request. Here the probe does so, and no client waits for
a store that is still down.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec
import structlog

from api.errors import StoreUnavailable
from api.model.scorer import Scorer
from scoring.errors import ServingError, UnusableFeature
from scoring.foreign_errors import first_line

log = structlog.get_logger(__name__)

OPENS_AFTER = 3
INTERVAL_S = 2.0
# While the store fails.
RETRY_S = 0.5
TIMEOUT_S = 1.0
NO_ANSWER = "The feature store gave no answer in time."


class StoreState(msgspec.Struct, frozen=True):
    """What is known about the feature store."""

    usable: bool
    problem: str | None = None
    """Why it is not usable, in one line."""
    answered_at: datetime | None = None
    """Time of its last answer."""


class Breaker:
    """A circuit breaker: open until the store's first answer, and after OPENS_AFTER failures in a row.

    One answer closes it. Called on the event loop.
    """

    def __init__(self) -> None:
        self.state = StoreState(usable=False, problem="The feature store has not been tried yet.")
        self.failures = 0
        """Number of failures since the last answer."""
        self.opened = 0
        """Number of times that it opened after it had been closed."""
        self._logged: str | None = None

    def check(self) -> None:
        """Raise StoreUnavailable if it is open."""
        if not self.state.usable:
            raise StoreUnavailable

    def answered(self) -> None:
        """Record an answer of the store."""
        if not self.state.usable:
            log.info("feature_store_usable")
        self.failures = 0
        self._logged = None
        self.state = StoreState(usable=True, answered_at=datetime.now(UTC))

    def failed(self, problem: str, reason: str | None = None) -> None:
        """Record a failure of the store, or that it did not answer in time.

        Args:
            problem: the description in /ready, which anyone can read.
            reason: the description in the log, written once, and again when it changes; `problem` by default.
        """
        reason = reason or problem
        self.failures += 1
        was_usable = self.state.usable
        if was_usable and self.failures < OPENS_AFTER:
            return
        self.opened += was_usable
        if reason != self._logged:
            log.warning("feature_store_unusable", reason=reason)
        self._logged = reason
        self.state = StoreState(False, problem, self.state.answered_at)


class StoreProbe:
    """Looks up one entity at intervals, in a thread of its own: a store that hangs occupies no other thread."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self._executor = ThreadPoolExecutor(1, "store-probe")
        self._running: Future[None] | None = None

    @property
    def state(self) -> StoreState:
        """The breaker's state of the store."""
        return self.breaker.state

    async def run(self, scorer: Callable[[], Scorer | None]) -> None:
        """Probe until cancelled, with the scorer that `scorer` returns, or not at all while it returns None."""
        while True:
            try:
                if (current := scorer()) is not None:
                    await self.check(current, TIMEOUT_S)
            except Exception:  # an unexpected error must not end the probing
                log.exception("probe_failed")
            await asyncio.sleep(RETRY_S if self.breaker.failures else INTERVAL_S)

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._executor.shutdown(wait=False)

    async def check(self, scorer: Scorer, timeout_s: float) -> None:
        """Probe once and report the result to the breaker. Raises nothing."""
        if self._running is not None and not self._running.done():
            self.breaker.failed(NO_ANSWER)
            return
        self._running = self._executor.submit(scorer.check_store)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(self._running)
        except UnusableFeature:  # an answer all the same
            self.breaker.answered()
        except TimeoutError:
            self.breaker.failed(NO_ANSWER)
        except ServingError as error:
            self.breaker.failed(error.public, str(error))
        except Exception as error:
            kind = type(error).__name__
            self.breaker.failed(f"The feature store can't be read ({kind}).", f"{kind}: {first_line(error)}")
        else:
            self.breaker.answered()
