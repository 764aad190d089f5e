"""API clients that use little CPU: the server needs it, and slow clients would measure their own queue."""

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


class Response(NamedTuple):
    """One response."""

    status: int
    took_s: float


class Load(NamedTuple):
    """Closed-loop load: each client has its own connection and waits for a response before its next request."""

    clients: int
    seconds: float
    pause_s: float = 0.0
    """Pause after a 503, times a random factor from 0.5 to 1.5, so that refused clients do not return in step."""
    rate: float | None = None
    """Requests per second of all clients together. None: as many as possible."""


async def apply_load(port: int, load: Load) -> list[Response]:
    """Send requests for the best of five drivers and return the responses.

    Raises:
        ConnectionError: the server closed a connection before its response.
    """
    loop = asyncio.get_running_loop()
    responses: list[Response] = []
    until = time.monotonic() + load.seconds
    clients = [_Client(load, number, until, responses) for number in range(load.clients)]
    for client in clients:
        await loop.create_connection(partial(_identity, client), HOST, port)
    await asyncio.gather(*(each.ended for each in clients))
    return responses


def load(port: int, clients: int, seconds: float, pause_s: float = 0.0, rate: float | None = None) -> list[Response]:
    """Run `apply_load` in a new event loop."""
    return uvloop.run(apply_load(port, Load(clients, seconds, pause_s, rate)))


class _Client(asyncio.Protocol):
    def __init__(self, load: Load, number: int, until: float, responses: list[Response]) -> None:
        self._load, self._until, self._responses = load, until, responses
        self._interval_s = load.clients / load.rate if load.rate else 0.0
        self._due = time.monotonic() + self._interval_s * number / load.clients
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(number)  # noqa: S311 - spreads clients
        self._received = b""
        self._began = 0.0
        self._transport: asyncio.WriteTransport
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's class does not inherit from it
        self._next(0.0)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the server closed the connection before its response"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(END_OF_HEAD)
        if not found or len(body) < _length(head):
            return
        status = int(self._received[9:12])
        self._responses.append(Response(status, time.perf_counter() - self._began))
        self._received = b""
        self._next(self._load.pause_s * self._random.uniform(0.5, 1.5) if status == 503 else 0.0)

    def _next(self, pause_s: float) -> None:
        now = time.monotonic()
        begin = max(now + pause_s, self._due)
        self._due += self._interval_s
        if begin >= self._until:
            self._end()
        elif begin > now:
            self._loop.call_later(begin - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(REQUEST)

    def _end(self) -> None:
        self.ended.set_result(None)
        self._transport.close()


def _identity(client: _Client) -> _Client:
    return client


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length: ")
    return int(rest.split(b"\r\n", 1)[0])
