"""Clients of the API that take little CPU themselves: the server needs it, and they would measure their own queue."""

import asyncio
import random
import time
from functools import partial
from typing import NamedTuple, cast

import uvloop

from tests.support.api_server import BODY
from tests.support.servers import HOST

END_OF_HEAD = b"\r\n\r\n"
REQUEST = b"\r\n".join(
    (
        b"POST /inference HTTP/1.1",
        b"Host: api",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(BODY),
        b"",
        BODY,
    )
)


class Taken(NamedTuple):
    """One answer."""

    status: int
    took_s: float


class Load(NamedTuple):
    """What clients do, each over its own connection; each waits for its answer before it asks again."""

    clients: int
    seconds: float
    pause_s: float = 0.0
    """What a client waits after a 503: a half of it to one and a half, or all refused ones would come in step."""
    rate: float | None = None
    """Requests a second of all clients together; None: as many as they can."""


async def put_on(port: int, load: Load) -> list[Taken]:
    """What the clients got, each asking for the best of five drivers.

    Raises:
        ConnectionError: the server closed a connection before its answer.
    """
    loop = asyncio.get_running_loop()
    taken: list[Taken] = []
    until = time.monotonic() + load.seconds
    clients = [_Client(load, number, until, taken) for number in range(load.clients)]
    for client in clients:
        await loop.create_connection(partial(_itself, client), HOST, port)
    await asyncio.gather(*(each.ended for each in clients))
    return taken


def load(port: int, clients: int, seconds: float, pause_s: float = 0.0, rate: float | None = None) -> list[Taken]:
    """`put_on` by an event loop of its own."""
    return uvloop.run(put_on(port, Load(clients, seconds, pause_s, rate)))


class _Client(asyncio.Protocol):
    def __init__(self, load: Load, number: int, until: float, taken: list[Taken]) -> None:
        self._load, self._until, self._taken = load, until, taken
        self._interval_s = load.clients / load.rate if load.rate else 0.0
        self._due = time.monotonic() + self._interval_s * number / load.clients
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(number)  # noqa: S311 - spreads clients
        self._answer = b""
        self._began = 0.0
        self._transport: asyncio.WriteTransport
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by inheritance
        self._next(0.0)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the server closed the connection before its answer"))

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(END_OF_HEAD)
        if not found or len(body) < _length(head):
            return
        status = int(self._answer[9:12])
        self._taken.append(Taken(status, time.perf_counter() - self._began))
        self._answer = b""
        self._next(self._load.pause_s * self._random.uniform(0.5, 1.5) if status == 503 else 0.0)

    def _next(self, pause_s: float) -> None:
        now = time.monotonic()
        begin = max(now + pause_s, self._due)
        self._due += self._interval_s
        if begin >= self._until:
            self._end()
        elif begin > now:
            self._loop.call_later(begin - now, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(REQUEST)

    def _end(self) -> None:
        self.ended.set_result(None)
        self._transport.close()


def _itself(client: _Client) -> _Client:
    return client


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length: ")
    return int(rest.split(b"\r\n", 1)[0])
