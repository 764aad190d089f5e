"""The API as a process over a real Redis, and load for it."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.e2e.api_server import BODY, Answer, ApiServer, Connection
from tests.servers import RedisServer
from tests.worlds import build_driver_world


@contextlib.contextmanager
def serving(**environment: str) -> Iterator[ApiServer]:
    """The API, ready, on 20 drivers and an ElasticNet, with these settings; gone with its Redis after the block."""
    with tempfile.TemporaryDirectory(prefix="serving-benchmark-") as name, contextlib.ExitStack() as stack:
        folders = [Path(name) / each for each in ("redis", "world", "api")]
        for folder in folders:
            folder.mkdir()
        redis = RedisServer(folders[0])
        redis.start()
        stack.callback(redis.stop)
        world = build_driver_world(folders[1], redis=f"{redis.host}:{redis.port}")
        server = ApiServer(folders[2], environment=world.environment | environment)
        server.start()
        stack.callback(server.stop)
        yield server


async def load(
    port: int, clients: int, seconds: float, pause_s: float = 0.0, rate: float | None = None
) -> list[Answer]:
    """What `clients` connections got within `seconds`, each asking for the best of five drivers.

    Args:
        port: the API's, on loopback.
        clients: connections; each waits for its answer before it asks again.
        seconds: how long to go on.
        pause_s: what a client waits after a 503.
        rate: requests a second of all clients together; None: as many as they can.
    """
    answers: list[Answer] = []
    until = time.monotonic() + seconds
    interval_s = clients / rate if rate else 0.0

    async def ask(number: int) -> None:
        async with Connection(port) as connection:
            async for _ in _beats(interval_s, number / clients, until):
                answer = await connection.ask("POST", "/inference", BODY)
                answers.append(answer)
                if answer.status == 503:
                    await asyncio.sleep(pause_s)

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return answers


async def _beats(interval_s: float, phase: float, until: float) -> AsyncIterator[None]:
    due = time.monotonic() + interval_s * phase
    while (now := time.monotonic()) < until:
        if due > now:
            await asyncio.sleep(due - now)
        yield
        due += interval_s


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
