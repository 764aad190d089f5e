"""What a scoring request brings and what goes back, on the ASGI messages themselves.

Litestar's request and response parse and copy all headers, which takes longer than reading a body and sending an
answer (2.25).
"""

import asyncio
from typing import cast

from litestar.types import Receive, Scope, Send

from api.errors import BodyTooLarge, BodyTooSlow, ClientLeft, UpgradeAsked


async def read_body(scope: Scope, receive: Receive, most_bytes: int, limit_s: float) -> bytes:
    """A request's body.

    Args:
        scope: the request's.
        receive: what brings the body, in pieces.
        most_bytes: how long it may be.
        limit_s: how many seconds it may take.

    Raises:
        BodyTooLarge: it is longer, or is announced to be.
        UpgradeAsked: the client wants to speak another protocol.
        BodyTooSlow: it did not arrive in time.
        ClientLeft: nor will it.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced) > most_bytes:
        raise BodyTooLarge(most_bytes)
    pieces, length, complete = [], 0, False
    # asyncio.timeout takes longer than reading a body that is already there.
    task, late = cast("asyncio.Task[None]", asyncio.current_task()), False

    def give_up() -> None:
        nonlocal late
        late = task.cancel()

    timer = asyncio.get_running_loop().call_later(limit_s, give_up)
    try:
        while not complete:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientLeft
            pieces.append(message["body"])
            length += len(pieces[-1])
            if length > most_bytes:
                raise BodyTooLarge(most_bytes)
            complete = not message.get("more_body")
    except asyncio.CancelledError:
        if not late or task.uncancel():
            raise  # it is somebody else who cancels
        raise BodyTooSlow(limit_s) from None
    finally:
        timer.cancel()
    if not length and header(scope, b"upgrade") is not None:
        raise UpgradeAsked  # httptools took the body for another protocol's (0.9)
    return b"".join(pieces)


def header(scope: Scope, name: bytes) -> str | None:
    """The value of the header `name`, given in lower case; the first, where it stands there twice."""
    for each, value in scope["headers"]:
        if each == name:
            return value.decode("latin-1")
    return None


async def send_json(send: Send, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Answer 200 with JSON text in UTF-8; `headers` are added, their names in lower case."""
    described = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": described})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_empty(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    """Answer 204 with these headers, their names in lower case."""
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
