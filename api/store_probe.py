"""Whether the online store answers: looked up every now and then, so that /ready need not ask it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog

from api.errors import Overloaded
from api.scorer import Scorer
from api.workers import Workers
from scoring.errors import ServingError, first_line

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0
PATIENCE_S = 1.0


class StoreState(msgspec.Struct, frozen=True):
    """What the last look-up told."""

    usable: bool
    problem: str | None = None
    """Why it is not usable, in one line."""
    checked_at: datetime | None = None


class StoreProbe:
    """Looks up one entity at a time in a thread of its own: a store that hangs holds that thread and no other."""

    def __init__(self) -> None:
        """Start without an answer."""
        self.state = StoreState(usable=False, problem="It was not asked yet.")
        self._workers = Workers("store-probe", threads=1, waiting=0)

    async def run(self, scorer: Callable[[], Scorer | None]) -> None:
        """Check until cancelled; `scorer` says through which scorer, None for none yet."""
        while True:
            if (current := scorer()) is not None:
                await self.check(current, PATIENCE_S)
            await asyncio.sleep(INTERVAL_S)

    def start(self) -> None:
        """Start its thread."""
        self._workers.start()

    def stop(self) -> None:
        """Let its thread end."""
        self._workers.stop()

    async def check(self, scorer: Scorer, patience_s: float) -> None:
        """Ask once and remember the outcome. Raises nothing."""
        problem = None
        try:
            async with asyncio.timeout(patience_s):
                await self._workers.run(scorer.check_store)
        except (TimeoutError, Overloaded):
            problem = "The feature store gave no answer in time."
        except ServingError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
        if problem is not None and self.state.problem != problem:
            log.warning("feature_store_unusable", reason=problem)
        elif problem is None and self.state.checked_at is not None and not self.state.usable:
            log.info("feature_store_usable_again")
        self.state = StoreState(problem is None, problem, datetime.now(UTC))
