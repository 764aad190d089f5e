"""Asks the online store every now and then, so that neither /ready nor a request has to find out whether it answers."""

import asyncio
from collections.abc import Callable

import structlog

from api.errors import Overloaded
from api.model.breaker import Breaker, StoreState
from api.model.scorer import Scorer
from api.model.workers import Workers
from scoring.errors import ServingError, UnusableFeature, first_line

log = structlog.get_logger(__name__)

INTERVAL_S = 2.0
# While the store fails: how soon its return is seen.
RETRY_S = 0.5
PATIENCE_S = 1.0
NO_ANSWER = "The feature store gave no answer in time."


class StoreProbe:
    """Looks up one entity at a time in a thread of its own: a store that hangs holds that thread and no other."""

    def __init__(self) -> None:
        """Start without an answer."""
        self.breaker = Breaker()
        self._workers = Workers("store-probe", threads=1, waiting=0)

    @property
    def state(self) -> StoreState:
        """What is known of the store."""
        return self.breaker.state

    async def run(self, scorer: Callable[[], Scorer | None]) -> None:
        """Check until cancelled; `scorer` says through which scorer, None for none yet."""
        while True:
            try:
                if (current := scorer()) is not None:
                    await self.check(current, PATIENCE_S)
            except Exception:  # what is not foreseen must not end the probing
                log.exception("probe_failed")
            await asyncio.sleep(RETRY_S if self.breaker.failures else INTERVAL_S)

    def start(self) -> None:
        """Start its thread."""
        self._workers.start()

    def stop(self) -> None:
        """Let its thread end."""
        self._workers.stop()

    async def check(self, scorer: Scorer, patience_s: float) -> None:
        """Ask once and tell the breaker the outcome. Raises nothing."""
        try:
            async with asyncio.timeout(patience_s):
                await self._workers.run(scorer.check_store)
        except UnusableFeature:  # which says something about the features of this entity, after an answer
            self.breaker.answered()
        except (TimeoutError, Overloaded):
            self.breaker.failed(NO_ANSWER)
        except ServingError as error:
            self.breaker.failed(error.public, str(error))
        except Exception as error:
            kind = type(error).__name__
            self.breaker.failed(f"The feature store can't be asked ({kind}).", f"{kind}: {first_line(error)}")
        else:
            self.breaker.answered()
