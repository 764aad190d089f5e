"""What a scoring request brings and what goes back, on the ASGI messages themselves.

Litestar's request and response parse and copy all headers, which takes longer than reading a body and sending an
answer (2.25).
"""

import asyncio
from collections.abc import Mapping
from typing import cast

from litestar.types import Receive, Scope, Send

from api.errors import BodyTooLarge, BodyTooSlow, ClientLeft, UpgradeAsked
from api.inference.timers import Timers

Headers = Mapping[bytes, bytes]
"""Name, in lower case → value; the first, where a name stands there twice."""


class BodyReader:
    """Reads bodies within the limits that are set for them."""

    def __init__(self, most_bytes: int, limit_s: float) -> None:
        """Args: how long a body may be, and how many seconds it may take."""
        self._most_bytes = most_bytes
        self._limit_s = limit_s
        self._timers = Timers(limit_s)

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The body of the request with these headers, which `receive` brings in pieces.

        Raises:
            BodyTooLarge: it is too long, or is announced to be.
            UpgradeAsked: the client wants to speak another protocol.
            BodyTooSlow: it did not arrive in time.
            ClientLeft: nor will it.
        """
        announced = headers.get(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > self._most_bytes:
            raise BodyTooLarge(self._most_bytes)
        pieces, length, complete = [], 0, False
        # asyncio.timeout takes longer than reading a body that is already there.
        task, late = cast("asyncio.Task[None]", asyncio.current_task()), False

        def give_up() -> None:
            nonlocal late
            late = task.cancel()

        timer = self._timers.start(asyncio.get_running_loop(), give_up)
        try:
            while not complete:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientLeft
                pieces.append(message["body"])
                length += len(pieces[-1])
                if length > self._most_bytes:
                    raise BodyTooLarge(self._most_bytes)
                complete = not message.get("more_body")
        except asyncio.CancelledError:
            if not late or task.uncancel():
                raise  # it is somebody else who cancels
            raise BodyTooSlow(self._limit_s) from None
        finally:
            timer.cancel()
        if not length and b"upgrade" in headers:
            raise UpgradeAsked  # httptools took the body for another protocol's (0.9)
        return b"".join(pieces)


def headers_of(scope: Scope) -> Headers:
    """The headers of a request."""
    return dict(reversed(cast("list[tuple[bytes, bytes]]", scope["headers"])))


async def send_json(send: Send, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Answer 200 with JSON text in UTF-8; `headers` are added, their names in lower case."""
    described = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": described})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_empty(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    """Answer 204 with these headers, their names in lower case."""
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
