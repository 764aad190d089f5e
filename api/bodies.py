"""What a scoring request brings and what goes back, on the ASGI messages themselves.

Litestar's request and response parse and copy all headers, which takes longer than reading a body and sending an
answer (2.25).
"""

import asyncio

from litestar.types import Receive, Scope, Send

from api.errors import BodyTooLarge, BodyTooSlow, ClientLeft


async def read_body(scope: Scope, receive: Receive, most_bytes: int, limit_s: float) -> bytes:
    """A request's body.

    Args:
        scope: the request's.
        receive: what brings the body, in pieces.
        most_bytes: how long it may be.
        limit_s: how many seconds it may take.

    Raises:
        BodyTooLarge: it is longer, or is announced to be.
        BodyTooSlow: it did not arrive in time.
        ClientLeft: nor will it.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced) > most_bytes:
        raise BodyTooLarge(most_bytes)
    pieces, length, complete = [], 0, False
    try:
        async with asyncio.timeout(limit_s):
            while not complete:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientLeft
                pieces.append(message["body"])
                length += len(pieces[-1])
                if length > most_bytes:
                    raise BodyTooLarge(most_bytes)
                complete = not message.get("more_body")
    except TimeoutError:
        raise BodyTooSlow(limit_s) from None
    return b"".join(pieces)


def header(scope: Scope, name: bytes) -> str | None:
    """The value of the header `name`, given in lower case; the first, where it stands there twice."""
    for each, value in scope["headers"]:
        if each == name:
            return value.decode("latin-1")
    return None


class JsonAnswer:
    """An ASGI response: 200, with JSON text and a few headers more."""

    __slots__ = ("_body", "_headers")

    def __init__(self, body: bytes, headers: dict[bytes, str]) -> None:
        """Args: JSON text in UTF-8, and headers by lower-case name, in visible ASCII."""
        self._body = body
        self._headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((name, value.encode("ascii")) for name, value in headers.items()),
        ]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """See ASGI."""
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})
