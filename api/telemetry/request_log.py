"""The log line of each request.

structlog writes all other events (`api.telemetry.log`). For one line per request, it needs 7.0 µs, and `RequestLog` 2.5
µs with the same members (structlog 25, Python 3.11): 4 % of the processor time of a request of five entities. The lines
of one iteration of the event loop are written together, which saves a system call each.
"""

import asyncio
from datetime import UTC, datetime
from typing import BinaryIO

import msgspec

from api.telemetry.log import NeverFailing

EVENT = {"event": "request", "level": "info", "logger": "api.http.observability"}


class RequestLog:
    """Writes the lines of one iteration of the event loop together, at its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = NeverFailing(file)
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []

    def write(self, facts: dict[str, object]) -> None:
        """Write one line with these facts about a request. Called on the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(self._encode({**facts, **EVENT, "timestamp": datetime.now(UTC)}))

    def _flush(self) -> None:
        self._lines.append(b"")
        self._file.write(b"\n".join(self._lines))
        self._file.flush()
        self._lines.clear()
