"""The API in its own process, and light-weight clients for it."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.servers import HOST, Server, answers_http

ROOT = Path(__file__).resolve().parents[2]
BODY = b'{"request_id":"r","driver_ids":[1001,1002,1003,1004,1005]}'


@dataclasses.dataclass
class ApiServer(Server):
    """`python -m api` with the given environment; `start` returns when it is ready."""

    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    awaited: str = "/ready"
    key: str | None = None

    name = "api"
    warm = True
    # Feast, MLflow and scikit-learn are imported and a model is loaded before it is ready.
    starts_within_s = 150.0
    stops_within_s = 30.0

    def start(self, when: str = "/ready") -> None:
        """Start the API, and return when this path responds with 200."""
        self.awaited = when
        super().start()

    def own_environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT), "SERVING_PORT": str(self.port)} | self.environment

    def command(self) -> list[str]:
        return [sys.executable, "-m", "api"]

    def answers(self) -> bool:
        return answers_http(self.port, self.awaited)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._client.get(path, **options)

    def ask(self, body: bytes = BODY, path: str = "/inference", **headers: str) -> httpx.Response:
        """POST a body as JSON."""
        known = {"Content-Type": "application/json"}
        if self.key is not None:
            known["Authorization"] = f"Bearer {self.key}"
        return self._client.post(path, content=body, headers=known | headers)

    @functools.cached_property
    def _client(self) -> httpx.Client:
        # One for all requests, because creating a client takes 50 ms of CPU time, most of it to read certificates. Each
        # request has a new connection, because tests restart the server.
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, timeout=10, verify=False, limits=limits, trust_env=False)

    def log_lines(self) -> list[dict[str, Any]]:
        # Not splitlines: a request id may contain other Unicode line separators.
        return [json.loads(line) for line in self.log.read_text().split("\n") if line.startswith("{")]


@dataclasses.dataclass
class Answer:
    """The response to a request on a `Connection`."""

    status: int
    headers: dict[str, str]
    body: bytes
    took_s: float


class Connection:
    """One keep-alive HTTP connection over plain streams. A full client would use CPU time that the server needs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", key: str = "") -> Answer:
        """Send a request and read the response. Raise OSError or IncompleteReadError if there is none."""
        began = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        head = [f"{method} {path} HTTP/1.1", "Host: api", f"Content-Length: {len(body)}"]
        head += ["Content-Type: application/json", f"Authorization: Bearer {key}", "", ""]
        writer.write("\r\n".join(head).encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            await self.close()
        return Answer(int(lines[0].split()[1]), headers, content, time.perf_counter() - began)

    async def close(self) -> None:
        """Close the connection, also if the other side has closed it."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
