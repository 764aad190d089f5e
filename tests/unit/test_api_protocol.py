"""An answer leaves in one piece, whatever uvicorn writes it in."""

import asyncio
from collections.abc import Awaitable, Callable

from api.protocol import OneWrite


class RecordingTransport(asyncio.Transport):
    """Remembers what is sent, and whether it was closed."""

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


def after(scenario: Callable[[RecordingTransport, OneWrite], Awaitable[None]]) -> RecordingTransport:
    """The transport after the scenario, and a turn of the event loop more."""
    below = RecordingTransport()

    async def run() -> None:
        await scenario(below, OneWrite(below, asyncio.get_running_loop()))
        await asyncio.sleep(0)

    asyncio.run(run())
    return below


def test_what_is_written_in_one_turn_is_sent_together_and_in_order() -> None:
    async def scenario(_: RecordingTransport, transport: OneWrite) -> None:
        transport.write(b"headers ")
        transport.write(b"body")
        await asyncio.sleep(0)
        transport.write(b"next")

    assert after(scenario).sent == [b"headers body", b"next"]


def test_closing_sends_what_was_written_before() -> None:
    async def scenario(_: RecordingTransport, transport: OneWrite) -> None:
        transport.write(b"answer")
        transport.close()

    closed = after(scenario)
    assert (closed.sent, closed.closed) == ([b"answer"], True)


def test_nothing_is_sent_to_a_client_that_left_meanwhile() -> None:
    async def scenario(below: RecordingTransport, transport: OneWrite) -> None:
        transport.write(b"answer")
        below.close()

    assert after(scenario).sent == []


def test_all_else_is_the_transports_own() -> None:
    async def scenario(below: RecordingTransport, transport: OneWrite) -> None:
        below.close()
        assert transport.is_closing()

    after(scenario)
