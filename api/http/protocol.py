"""uvicorn's HTTP protocol, with each answer in one packet, and with a limit for headers.

uvicorn writes the headers and the body of an answer one after the other (0.54), and uvloop sends each at once (0.23):
two system calls, two packets, and a client that is woken twice.

It takes headers of any length, and puts a long one together anew with each piece of it (httptools 0.7): 100 MB held up
the whole process for half a minute.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Twice what proxies send on (nginx: 32 KiB); all headers of a request together.
MOST_HEADER_BYTES = 65_536
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class OneWrite:
    """A transport that sends together what is written in one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Args: the transport, connected, and its event loop."""
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport`."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """See `asyncio.BaseTransport`: what was written before is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class OneWriteProtocol(HttpToolsProtocol):
    """See the module."""

    _header_bytes = 0
    """Of this request, its trailers included."""
    _unfinished_bytes = 0
    """What came since the parser last had something whole."""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if max(self._header_bytes, self._unfinished_bytes) > MOST_HEADER_BYTES:
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._unfinished_bytes = 0
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._unfinished_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unfinished_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._unfinished_bytes = 0
        super().on_message_complete()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """See `asyncio.BaseProtocol`."""
        super().connection_made(cast("asyncio.Transport", OneWrite(transport, self.loop)))
