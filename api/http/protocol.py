"""uvicorn's HTTP protocol, with one packet per response and a limit for headers.

uvicorn writes the headers and the body of a response one after the other (0.54), and uvloop sends each at once (0.23):
which costs two system calls and two packets, and wakes the client twice.

uvicorn accepts headers of any length, and httptools (0.7) copies an incomplete header again with each piece of it:
100 MB blocked the whole process for half a minute.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http.messages import BODY_COMPLETE

# All headers of a request together. Twice what proxies forward (nginx: 32 KiB).
MAX_HEADER_BYTES = 65_536
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class CoalescingTransport:
    """A transport that sends everything written in one iteration of the event loop together."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap a connected transport of this event loop."""
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport`."""
        if not self._pending:
            self._loop.call_soon(self._send)
        self._pending.append(data)

    def close(self) -> None:
        """See `asyncio.BaseTransport`. Sends what was written before."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        pending, self._pending = self._pending, []
        if pending and not self._transport.is_closing():
            self._transport.write(b"".join(pending))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the changes that the module describes."""

    _header_bytes = 0
    """Size of the current request's headers, counted only if its first bytes exceed the limit."""
    _unparsed_bytes = 0
    """Bytes received since the parser completed the headers, a piece of the body, or the request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """See `asyncio.BaseProtocol`."""
        super().connection_made(cast("asyncio.Transport", CoalescingTransport(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEADER_BYTES or self._header_bytes > MAX_HEADER_BYTES:
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._unparsed_bytes > MAX_HEADER_BYTES:  # a body may be among them
            self._header_bytes = sum(len(name) + len(value) for name, value in self.headers)
        self._unparsed_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._unparsed_bytes = 0
        self.scope["state"][BODY_COMPLETE] = True
        super().on_message_complete()
