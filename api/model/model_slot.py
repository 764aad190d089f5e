"""The slot that holds what serves now, and the follower that fills it from what the registry's alias names."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec
import structlog

from api.errors import NoModel
from api.model.loading import Loader, Target
from api.model.request_schema import RequestForm
from api.model.scorer import Scorer
from api.model.store_probe import StoreProbe
from api.model.workers import Workers
from scoring.errors import NoRoom, RegistryError, ServingError, first_line
from scoring.settings import Settings

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 600.0
WARM_UP_S = 5.0


class Served(msgspec.Struct, frozen=True):
    """What serves: one version with everything that a request needs of it. Swapped as a whole."""

    target: Target
    scorer: Scorer
    form: RequestForm


class Refusal(msgspec.Struct, frozen=True):
    """A version that should serve and can't: it was refused, or this machine can't try it."""

    target: Target
    reason: str
    """As the log tells it."""
    public: str
    """As /ready tells it."""
    attempts: int
    of_this_machine: bool
    """Whether it is this machine's fault, and nothing is known of the version."""
    retry_at: float
    """On the follower's clock. Sooner only if the alias or the feature definitions change."""


class ModelSlot:
    """Holds what serves now. Read and written on the event loop only, so that one request sees one version."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty; `clock` gives seconds."""
        self.clock = clock
        self.served: Served | None = None
        self.refusal: Refusal | None = None
        self.looked_at: float | None = None
        """When the registries last said what should serve."""
        self.look_problem: str | None = None
        """Why they could not, the last time that they were asked; None if they could."""
        self.swaps = 0
        """How often another version, or the same on other feature definitions, began to serve."""
        self.refusals = 0
        """How often one that should serve was refused, each attempt counted."""

    def current(self) -> Served:
        """What serves now.

        Raises:
            NoModel: nothing does yet.
        """
        if self.served is None:
            raise NoModel(self.why_empty())
        return self.served

    def why_empty(self) -> str:
        """Why nothing serves, in one line."""
        if self.refusal is not None:
            return self.refusal.public
        return self.look_problem or "the first one is being loaded."

    def poll_age_s(self) -> float | None:
        """Seconds since the registries last said what should serve; None if they never did."""
        return None if self.looked_at is None else self.clock() - self.looked_at


class AliasFollower:
    """Looks at the alias again and again, loads what it names beside what serves, and swaps."""

    def __init__(self, settings: Settings, loader: Loader, slot: ModelSlot, probe: StoreProbe) -> None:
        """Args: where to look, what to fill, and the probe that warms a scorer's way to the online store."""
        self._settings = settings
        self._loader = loader
        self._slot = slot
        self._probe = probe
        # One thread: a registry that hangs delays the next look, and nothing else.
        self._workers = Workers("follower", threads=1, waiting=0)
        self._woken = asyncio.Event()
        self._logged: str | None = None

    def wake(self) -> None:
        """Look now instead of at the end of the interval."""
        self._woken.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.poll()
            except Exception:  # what is not foreseen must not end the following
                log.exception("look_failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._settings.poll_interval_s)
            self._woken.clear()

    def start(self) -> None:
        """Start its thread."""
        self._workers.start()

    def stop(self) -> None:
        """Let its thread end."""
        self._workers.stop()

    async def poll(self) -> None:
        """Look once, and load what should serve if that is another. Raises nothing: the slot tells the outcome."""
        slot = self._slot
        try:
            target = await self._workers.run(self._loader.poll)
        except Exception as error:
            self._registry_failed(error)
            return
        slot.looked_at = slot.clock()
        if slot.served is not None and slot.served.target == target:
            slot.refusal = None
        elif slot.refusal is None or slot.refusal.target != target or slot.clock() >= slot.refusal.retry_at:
            await self._replace(target)
            return
        self._registry_answered()

    async def _replace(self, target: Target) -> None:
        slot = self._slot
        current = slot.served.scorer if slot.served else None
        started = slot.clock()
        try:
            scorer = await self._workers.run(lambda: self._loader.load(target, current))
            form = RequestForm(str(scorer.version), scorer.features, self._settings.max_entities)
        except RegistryError as error:  # an outage says nothing about the version
            self._registry_failed(error)
            return
        except Exception as error:
            self._registry_answered()
            self._refuse(target, error)
            return
        self._registry_answered()
        await self._probe.check(scorer, WARM_UP_S)
        if await self._moved_on(target):
            log.info("model_not_swapped", model=str(scorer.version), reason="the alias moved while it was loaded.")
            self.wake()
            return
        slot.served = Served(target, scorer, form)
        slot.swaps += 1
        slot.refusal = None
        log.info(
            "model_swapped",
            model=str(scorer.version),
            replaced=str(current.version) if current else None,
            feature_service=scorer.features.service,
            took_s=round(slot.clock() - started, 3),
        )

    async def _moved_on(self, target: Target) -> bool:
        """Whether something else should serve by now: a version that was taken back while it was tried never serves."""
        try:
            return await self._workers.run(self._loader.poll) != target
        except Exception:  # the next look says so
            return False

    def _registry_answered(self) -> None:
        if self._slot.look_problem is not None:
            log.info("registry_answers_again")
        self._slot.look_problem = self._logged = None

    def _registry_failed(self, error: Exception) -> None:
        reason = _reason(error)
        if reason != self._logged:  # once, not at every look or attempt to fetch
            log.warning("registry_gives_no_answer", reason=reason, exc_info=_unexpected(error))
        self._logged = reason
        self._slot.look_problem = _public(error)

    def _refuse(self, target: Target, error: Exception) -> None:
        slot = self._slot
        here = isinstance(error, NoRoom)
        again = slot.refusal if slot.refusal is not None and slot.refusal.target == target else None
        attempts = again.attempts + 1 if again else 1
        reason = _reason(error)
        if again is None or again.reason != reason:
            event = "model_not_tried" if here else "model_refused"
            log.error(event, model=str(target.version), reason=reason, exc_info=_unexpected(error))
        wait_s = min(FIRST_RETRY_S * 2 ** (attempts - 1), LONGEST_RETRY_S)
        slot.refusal = Refusal(target, reason, _public(error), attempts, here, slot.clock() + wait_s)
        slot.refusals += not here


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ServingError) else f"{type(error).__name__}: {first_line(error)}"


def _public(error: Exception) -> str:
    return error.public if isinstance(error, ServingError) else f"{type(error).__name__}; the log says more."


def _unexpected(error: Exception) -> Exception | None:
    return None if isinstance(error, ServingError) else error
