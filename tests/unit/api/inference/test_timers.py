"""Timers of one length: they ring in time and in order, and cancelled ones leave nothing behind."""

import asyncio

from api.inference.timers import Timers


def test_timers_ring_in_the_order_in_which_they_began_and_not_before_their_time() -> None:
    async def scenario() -> list[tuple[str, float]]:
        loop, timers = asyncio.get_running_loop(), Timers(0.05)
        began, rung = loop.time(), list[tuple[str, float]]()
        timers.start(loop, lambda: rung.append(("first", loop.time() - began)))
        await asyncio.sleep(0.02)
        timers.start(loop, lambda: rung.append(("second", loop.time() - began)))
        await asyncio.sleep(0.1)
        timers.start(loop, lambda: rung.append(("third", loop.time() - began)))
        await asyncio.sleep(0.1)
        return rung

    rung = asyncio.run(scenario())
    assert [name for name, _ in rung] == ["first", "second", "third"]
    for (_, at), due in zip(rung, (0.05, 0.07, 0.17), strict=True):
        assert at >= due - 0.001


def test_a_cancelled_timer_does_not_ring_and_those_after_it_do() -> None:
    async def scenario() -> list[int]:
        loop, timers, rung = asyncio.get_running_loop(), Timers(0.03), list[int]()
        started = [timers.start(loop, lambda number=number: rung.append(number)) for number in range(4)]
        started[0].cancel()
        started[2].cancel()
        await asyncio.sleep(0.08)
        started[1].cancel()  # it has rung
        return rung

    assert asyncio.run(scenario()) == [1, 3]


def test_timers_that_were_cancelled_are_forgotten_when_the_next_one_begins() -> None:
    async def scenario() -> int:
        loop, timers = asyncio.get_running_loop(), Timers(60)
        for _ in range(1000):
            timers.start(loop, lambda: None).cancel()
        return len(timers._running)

    assert asyncio.run(scenario()) == 1
