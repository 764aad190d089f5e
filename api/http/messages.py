"""HTTP requests and responses as ASGI messages, for requests that bypass Litestar, and conversion of responses to its.

Litestar's request and response objects parse and copy all headers, which takes longer than reading a body and sending
a response (litestar 2.25).
"""

import asyncio
from typing import cast

import litestar
from litestar.types import Receive, Scope, Send

from api.errors import BodyTooLarge, BodyTooSlow, ClientLeft, UpgradeRequested
from api.protocols.response import Headers, Response

BODY_COMPLETE = "serving_body_complete"
"""Key in the ASGI state of a request whose whole body has arrived, so that reading it needs no timer."""


class BodyReader:
    """Reads request bodies within limits of size and time."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def read(self, scope: Scope, headers: Headers, receive: Receive, max_bytes: int) -> bytes:
        """Return the body of a request.

        Args:
            scope: the request.
            headers: its headers, from `headers_of`.
            receive: receives its ASGI messages.
            max_bytes: maximum size of the body.

        Raises:
            BodyTooLarge: the body or its Content-Length exceeds the limit.
            BodyTooSlow: the body did not arrive in time.
            ClientLeft: the client closed the connection.
            UpgradeRequested: the client wants to switch to another protocol.
        """
        announced = headers.get(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > max_bytes:
            raise BodyTooLarge(max_bytes)
        if BODY_COMPLETE in scope["state"]:
            body = await self._receive_all(receive, max_bytes)
        else:
            try:
                async with asyncio.timeout(self._timeout_s):
                    body = await self._receive_all(receive, max_bytes)
            except TimeoutError:
                raise BodyTooSlow(self._timeout_s) from None
        if not body and b"upgrade" in headers:
            raise UpgradeRequested  # httptools treated the body as data of the other protocol (0.9)
        return body

    async def _receive_all(self, receive: Receive, max_bytes: int) -> bytes:
        pieces, length, complete = [], 0, False
        while not complete:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientLeft
            pieces.append(message["body"])
            length += len(pieces[-1])
            if length > max_bytes:
                raise BodyTooLarge(max_bytes)
            complete = not message.get("more_body")
        return b"".join(pieces)


def headers_of(scope: Scope) -> Headers:
    """Return the headers of a request."""
    return dict(reversed(cast("list[tuple[bytes, bytes]]", scope["headers"])))


async def send_response(send: Send, response: Response) -> None:
    """Send a complete response."""
    headers = response.headers
    if response.status != 204:
        headers = [*headers, (b"content-length", b"%d" % len(response.body))]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})


def to_litestar(response: Response) -> litestar.Response[bytes]:
    """Convert a response to one of Litestar."""
    headers = {name.decode(): value.decode() for name, value in response.headers}
    media_type = headers.pop("content-type")
    return litestar.Response(response.body, status_code=response.status, media_type=media_type, headers=headers)
