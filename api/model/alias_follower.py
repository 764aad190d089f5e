"""Follows the registry's alias: polls it, loads the version it names beside the one that serves, and swaps."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from api.model.loading import Loader, Target
from api.model.model_slot import ModelSlot, Refusal, Served
from api.model.request_schema import RequestSchema
from api.model.scorer import Scorer
from api.model.store_health import StoreProbe
from scoring.errors import NoRoom, RegistryError, ServingError
from scoring.foreign_errors import first_line
from scoring.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 600.0
WARM_UP_S = 5.0


class AliasFollower:
    """Fills a `ModelSlot`, in a thread of its own: a registry that hangs delays only the next poll."""

    def __init__(
        self, settings: Settings, loader: Loader, slot: ModelSlot, probe: StoreProbe | None, alias: str | None = None
    ) -> None:
        """Follow nothing yet.

        Args:
            settings: all settings.
            loader: polls the registries and loads versions.
            slot: gets the loaded version.
            probe: warms up a version's connection to the online store before it serves; None to do without.
            alias: the alias that the loader follows, for the log; that of the settings by default.
        """
        self._settings = settings
        self._loader = loader
        self._slot = slot
        self._probe = probe
        self._executor = ThreadPoolExecutor(1, "follower")
        self._woken = asyncio.Event()
        self._logged: str | None = None
        self._alias = alias or settings.model_alias

    def wake(self) -> None:
        """Poll now instead of at the end of the interval."""
        self._woken.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.poll()
            except Exception:  # an unexpected error must not end the polling
                log.exception("poll_failed", alias=self._alias)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._settings.poll_interval_s)
            self._woken.clear()

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._executor.shutdown(wait=False)

    async def poll(self) -> None:
        """Poll once, and load what should serve if that has changed. Never raises; the result is in the slot."""
        slot = self._slot
        try:
            target = await self._in_thread(self._loader.poll)
        except Exception as error:
            self._registry_failed(error)
            return
        slot.polled_at = slot.clock()
        if target is None:
            slot.refusal = None
            await self._serve(None)
        elif slot.served is not None and slot.served.target == target:
            slot.refusal = None
            await self._find_example(slot.served)
        elif slot.refusal is None or slot.refusal.target != target or slot.clock() >= slot.refusal.retry_at:
            await self._replace(target)
            return
        self._registry_answered()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def _replace(self, target: Target) -> None:
        slot = self._slot
        current = slot.served.scorer if slot.served else None
        started_at = slot.clock()
        scorer: Scorer | None = None
        try:
            scorer = await self._in_thread(lambda: self._loader.load(target, current))
            name, features, inputs = str(scorer.version), scorer.features, scorer.input_example
            schema = RequestSchema(name, features, self._settings.max_entities, inputs)
        except RegistryError as error:  # an outage is not a fault of the version
            self._registry_failed(error)
            return
        except Exception as error:
            self._registry_answered()
            self._refuse(target, error)
            if scorer is not None:  # requests of its schema can't be answered; a challenger has a process
                await self._in_thread(scorer.close)
            return
        self._registry_answered()
        if self._probe is not None:
            await self._probe.check(scorer, WARM_UP_S)
        if await self._alias_moved(target):
            await self._in_thread(scorer.close)
            reason = "The alias moved while it was loaded."
            log.info("model_not_swapped", model=str(scorer.version), alias=self._alias, reason=reason)
            self.wake()
            return
        await self._serve(Served(target, scorer, schema))
        slot.swaps += 1
        slot.refusal = None
        log.info(
            "model_swapped",
            model=str(scorer.version),
            alias=self._alias,
            replaced=str(current.version) if current else None,
            feature_service=scorer.features.service,
            took_s=round(slot.clock() - started_at, 3),
        )

    async def _serve(self, served: Served | None) -> None:
        before, self._slot.served = self._slot.served, served
        if before is not None:
            await self._in_thread(before.scorer.close)
        if served is not None:
            await self._find_example(served)

    def withdraw(self, served: Served, error: Exception) -> None:
        """Stop serving a version that can't serve any more, unless another one has replaced it. It is retried later."""
        if self._slot.served is served:
            self._slot.served = None
            self._refuse(served.target, error)

    async def _find_example(self, served: Served) -> None:
        """Give the examples of requests join keys from the online store, which may have been empty at the last poll."""
        examples = served.schema.examples
        if examples.stored_keys is None:
            examples.stored_keys = await self._in_thread(served.scorer.stored_keys)

    async def _alias_moved(self, target: Target) -> bool:
        """Return whether the alias has moved while `target` was loaded; False if that is unknown."""
        try:
            return await self._in_thread(self._loader.poll) != target
        except Exception:  # the next poll will report it
            return False

    def _registry_answered(self) -> None:
        if self._slot.poll_problem is not None:
            log.info("registry_recovered", alias=self._alias)
        self._slot.poll_problem = self._logged = None

    def _registry_failed(self, error: Exception) -> None:
        reason = _reason(error)
        if reason != self._logged:  # once, not at every poll or attempt to download
            log.warning("registry_failed", alias=self._alias, reason=reason, exc_info=_unexpected(error))
        self._logged = reason
        self._slot.poll_problem = _public(error)

    def _refuse(self, target: Target, error: Exception) -> None:
        slot = self._slot
        of_this_machine = isinstance(error, NoRoom)
        before = slot.refusal if slot.refusal is not None and slot.refusal.target == target else None
        attempts = before.attempts + 1 if before else 1
        reason = _reason(error)
        if before is None or before.reason != reason:
            event = "model_not_tried" if of_this_machine else "model_refused"
            facts = {"model": str(target.version), "alias": self._alias, "reason": reason}
            log.error(event, **facts, exc_info=_unexpected(error))
        wait_s = min(FIRST_RETRY_S * 2 ** (attempts - 1), LONGEST_RETRY_S)
        slot.refusal = Refusal(target, reason, _public(error), attempts, of_this_machine, slot.clock() + wait_s)
        slot.refusals += not of_this_machine


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ServingError) else f"{type(error).__name__}: {first_line(error)}"


def _public(error: Exception) -> str:
    return error.public if isinstance(error, ServingError) else f"{type(error).__name__}; see the log."


def _unexpected(error: Exception) -> Exception | None:
    return None if isinstance(error, ServingError) else error
