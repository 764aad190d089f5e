"""A circuit breaker: when the feature store has failed several times running, requests are told so without asking it.

Our own few lines because those on PyPI (pybreaker, aiobreaker, purgatory) probe with a caller's request when they are
half-open. Here the probe is `StoreProbe`, in the background: no client waits to learn that the store is still down.
"""

from datetime import UTC, datetime

import msgspec
import structlog

from api.errors import StoreUnavailable

log = structlog.get_logger(__name__)

OPENS_AFTER = 3


class StoreState(msgspec.Struct, frozen=True):
    """What is known of the feature store."""

    usable: bool
    problem: str | None = None
    """Why it is not usable, in one line."""
    answered_at: datetime | None = None
    """When it last answered."""


class Breaker:
    """Open (not usable) until the first answer and after OPENS_AFTER failures without an answer between them.

    Told of every outcome on the event loop. One answer closes it.
    """

    def __init__(self) -> None:
        """Start open: nobody has asked yet."""
        self.state = StoreState(usable=False, problem="The feature store was not asked yet.")
        self.failures = 0
        self.opened = 0
        """How often it opened after it had been closed."""
        self._logged: str | None = None

    def check(self) -> None:
        """Nothing, while it is closed.

        Raises:
            StoreUnavailable: it is open.
        """
        if not self.state.usable:
            raise StoreUnavailable

    def answered(self) -> None:
        """The store answered."""
        if not self.state.usable:
            log.info("feature_store_usable")
        self.failures = 0
        self._logged = None
        self.state = StoreState(usable=True, answered_at=datetime.now(UTC))

    def failed(self, problem: str, reason: str | None = None) -> None:
        """The store failed, or gave no answer in time.

        Args:
            problem: what whoever asks /ready may read of it.
            reason: what the log gets, once until it is another; the same by default.
        """
        reason = reason or problem
        self.failures += 1
        was_usable = self.state.usable
        if was_usable and self.failures < OPENS_AFTER:
            return
        if was_usable:
            self.opened += 1
        if reason != self._logged:
            log.warning("feature_store_unusable", reason=reason)
        self._logged = reason
        self.state = StoreState(False, problem, self.state.answered_at)
