"""The log line of each request has the form of all other lines."""

import asyncio
import io
import json
from datetime import UTC, datetime, timedelta

from api.telemetry.request_context import RequestLog


class Recording(io.BytesIO):
    """Records each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: object) -> int:
        self.writes.append(bytes(data))  # type: ignore[call-overload]
        return len(self.writes[-1])


def test_the_lines_of_one_turn_of_the_event_loop_are_written_together_and_in_order() -> None:
    file = Recording()

    async def scenario() -> None:
        log = RequestLog(file)
        for number in range(3):
            log.write({"status": 200, "request_id": f"r{number} \n€"})
        assert not file.writes
        await asyncio.sleep(0)
        log.write({"status": 503})
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert [write.count(b"\n") for write in file.writes] == [3, 1]
    lines = [json.loads(line) for write in file.writes for line in write.splitlines()]
    assert [line.get("request_id") for line in lines] == ["r0 \n€", "r1 \n€", "r2 \n€", None]
    assert {line["event"] for line in lines} == {"request"}
    assert {line["level"] for line in lines} == {"info"}
    for line in lines:
        timestamp = datetime.fromisoformat(line["timestamp"])
        assert timedelta(0) <= datetime.now(UTC) - timestamp < timedelta(minutes=1)


def test_after_a_write_that_failed_the_next_lines_are_written() -> None:
    class FullAtFirst(Recording):
        full = True

        def write(self, data: object) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(data)

    file, errors = FullAtFirst(), []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        log = RequestLog(file)
        for status in (200, 503):
            log.write({"status": status})
            await asyncio.sleep(0)
            file.full = False

    asyncio.run(scenario())
    assert errors == []
    assert [json.loads(line)["status"] for line in file.writes] == [503]
