"""HTTP requests and responses as ASGI messages, for what does not go through Litestar.

Litestar's request and response objects parse and copy all headers, which takes longer than reading a body and sending
an answer (litestar 2.25).
"""

import asyncio
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple, cast

from litestar.types import Receive, Scope, Send

from api.errors import BodyTooLarge, BodyTooSlow, ClientLeft, UpgradeRequested

Headers = Mapping[bytes, bytes]
"""Header name in lower case → value; the first one where a name is repeated."""


class Response(NamedTuple):
    """A whole response."""

    status: int
    headers: dict[str, str]
    """Names in lower case, values in visible ASCII; Content-Length is added when it is sent."""
    body: bytes


class BodyReader:
    """Reads request bodies within a size and a time."""

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The body of the request with these headers.

        Raises:
            BodyTooLarge: it is, or its Content-Length says so.
            BodyTooSlow: it did not arrive in time.
            ClientLeft: the client closed the connection.
            UpgradeRequested: the client wants to switch to another protocol.
        """
        announced = headers.get(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        pieces, length, complete = [], 0, False
        # asyncio.timeout takes longer than reading a body that is already there.
        task, late = cast("asyncio.Task[None]", asyncio.current_task()), False

        def give_up() -> None:
            nonlocal late
            late = task.cancel()

        timer = asyncio.get_running_loop().call_later(self._timeout_s, give_up)
        try:
            while not complete:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientLeft
                pieces.append(message["body"])
                length += len(pieces[-1])
                if length > self._max_bytes:
                    raise BodyTooLarge(self._max_bytes)
                complete = not message.get("more_body")
        except asyncio.CancelledError:
            if not late or task.uncancel():
                raise  # cancelled by someone else
            raise BodyTooSlow(self._timeout_s) from None
        finally:
            timer.cancel()
        if not length and b"upgrade" in headers:
            raise UpgradeRequested  # httptools took the body for data of the other protocol (0.9)
        return b"".join(pieces)


def headers_of(scope: Scope) -> Headers:
    """The headers of a request."""
    return dict(reversed(cast("list[tuple[bytes, bytes]]", scope["headers"])))


async def send_response(send: Send, response: Response) -> None:
    """Send a whole response."""
    headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in response.headers.items()]
    if response.status != 204:
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})


def header_text(text: str) -> str:
    """`text` as a header value: percent-encoded, except for visible ASCII and spaces between."""
    stripped = text.strip() == text
    if stripped and text.isascii() and text.isprintable() and "%" not in text:
        return text  # quote gives the same and takes ten times as long
    return urllib.parse.quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|} " if stripped else "/")
