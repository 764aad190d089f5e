"""A log that can't be written, or any other unexpected error, stops nothing."""

import asyncio
import io
import time

from api.model.alias_follower import AliasFollower
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from api.telemetry.log import NeverFailing
from scoring.settings import Settings
from tests.support.fakes import FakeLoader, FakeScorer


class Disk(io.BytesIO):
    """Fails at every write while it is full."""

    full = True

    def write(self, data: object) -> int:
        self.flush()
        return super().write(data)  # type: ignore[arg-type]

    def flush(self) -> None:
        if self.full:
            raise OSError(27, "File too large")


class FailingClock:
    """A clock that fails a few times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> float:
        self.left -= 1
        if self.left >= 0:
            raise OSError(27, "File too large")
        return time.monotonic()


def test_a_line_that_cannot_be_written_is_dropped_and_the_next_one_is_written() -> None:
    disk = Disk()
    file = NeverFailing(disk)
    file.write(b"dropped")
    file.flush()
    disk.full = False
    file.write(b"written")
    file.flush()
    assert disk.getvalue() == b"written"
    disk.close()
    file.write(b"dropped")
    file.flush()


def test_the_alias_is_still_followed_after_unexpected_errors() -> None:
    async def follow() -> int | None:
        slot = ModelSlot(FailingClock(3))
        settings = Settings(model_name="ranker", poll_interval_s=0.01)
        follower = AliasFollower(settings, FakeLoader(FakeScorer(7)), slot, StoreProbe())
        task = asyncio.create_task(follower.run())
        for _ in range(500):
            await asyncio.sleep(0.01)
            if slot.served is not None:
                break
        task.cancel()
        follower.stop()
        return slot.served.scorer.version.version if slot.served else None

    assert asyncio.run(follow()) == 7


def test_the_store_is_still_probed_after_unexpected_errors() -> None:
    errors = iter([OSError(27, "File too large"), RuntimeError("again")])

    def scorer() -> FakeScorer:
        for error in errors:
            raise error
        return FakeScorer()

    async def probe() -> bool:
        store_probe = StoreProbe()
        store_probe.breaker.failures = 1  # so that it probes at short intervals
        task = asyncio.create_task(store_probe.run(scorer))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if store_probe.state.usable:
                break
        task.cancel()
        store_probe.stop()
        return store_probe.state.usable

    assert asyncio.run(probe())
