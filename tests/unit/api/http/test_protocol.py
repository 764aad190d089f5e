"""A response is sent in one piece, and headers have a limit."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from api.http.messages import BODY_COMPLETE
from api.http.protocol import CoalescingTransport, HttpProtocol


class RecordingTransport(asyncio.Transport):
    """Records what is sent, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def after(scenario: Callable[[RecordingTransport, CoalescingTransport], Awaitable[None]]) -> RecordingTransport:
    """Return the transport after the scenario and one more turn of the event loop."""
    inner = RecordingTransport()

    async def run() -> None:
        await scenario(inner, CoalescingTransport(inner, asyncio.get_running_loop()))
        await asyncio.sleep(0)

    asyncio.run(run())
    return inner


def test_data_written_in_one_turn_of_the_event_loop_is_sent_together_in_order() -> None:
    async def scenario(_: RecordingTransport, transport: CoalescingTransport) -> None:
        transport.write(b"headers ")
        transport.write(b"body")
        await asyncio.sleep(0)
        transport.write(b"next")

    assert after(scenario).sent == [b"headers body", b"next"]


def test_closing_sends_the_data_written_before() -> None:
    async def scenario(_: RecordingTransport, transport: CoalescingTransport) -> None:
        transport.write(b"answer")
        transport.close()

    closed = after(scenario)
    assert (closed.sent, closed.closed) == ([b"answer"], True)


def test_nothing_is_sent_after_the_client_has_left() -> None:
    async def scenario(inner: RecordingTransport, transport: CoalescingTransport) -> None:
        transport.write(b"answer")
        inner.close()

    assert after(scenario).sent == []


def test_other_attributes_are_those_of_the_transport() -> None:
    async def scenario(inner: RecordingTransport, transport: CoalescingTransport) -> None:
        inner.close()
        assert transport.is_closing()

    after(scenario)


async def _respond(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _send(port: int, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        answer = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
PIECE = b"a" * 20_000


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([GET, b"\r\n"], b"200"),
        ([GET, b"X: ", PIECE, b"\r\n", b"Y: ", PIECE, b"\r\n\r\n"], b"200"),
        ([LENGTH, *[PIECE] * 50], b"200"),
        ([LENGTH + PIECE * 50], b"200"),
        ([GET + (b"X: " + PIECE + b"\r\n") * 5 + b"\r\n"], b"431"),
        ([GET, b"X: ", *[PIECE] * 50], b"431"),
        ([GET, *[b"X: " + PIECE + b"\r\n"] * 5], b"431"),
        ([b"GET /", *[PIECE] * 50], b"431"),
        ([POST, b"0\r\nX: ", *[PIECE] * 50], b"431"),
    ],
    ids=[
        "plain",
        "long",
        "body",
        "body with the headers",
        "complete headers",
        "endless header",
        "many headers",
        "endless path",
        "endless trailer",
    ],
)
def test_headers_have_a_limit_that_bodies_do_not_count_towards(pieces: list[bytes], status: bytes) -> None:
    answer = _answer_to(_respond, *pieces)
    # A client that still sends when the connection is closed may be reset before it reads the response.
    assert answer.split(b" ")[1:2] == [status] or (status == b"431" and answer == b"")


SHORT = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize(("pieces", "complete"), [([SHORT + b"ab"], True), ([SHORT + b"a"], False)])
def test_an_application_knows_whether_the_whole_body_has_arrived(pieces: list[bytes], complete: bool) -> None:
    async def respond(scope: Any, receive: Any, send: Any) -> None:
        status = 200 if BODY_COMPLETE in scope["state"] else 202
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert _answer_to(respond, *pieces).split(b" ")[1] == (b"200" if complete else b"202")


def _answer_to(application: Any, *pieces: bytes) -> bytes:
    """Return the first line of the response to a request that is sent in pieces."""

    async def exchange() -> bytes:
        config = uvicorn.Config(application, http=HttpProtocol, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            answer = await _send(listening.getsockname()[1], *pieces)
            server.should_exit = True
            await serving
        return answer

    return asyncio.run(exchange())
