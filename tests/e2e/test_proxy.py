"""nginx as docker-compose.yml runs it, in front of replicas that reject requests under overload."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from api.protocols.problems import NOT_FOUND, TYPE_PREFIX
from tests.support import compose, stand_ins
from tests.support.api_server import Answer, Connection
from tests.support.certificates import write_certificate
from tests.support.compose_services import Service
from tests.support.places import Places
from tests.support.servers import HOST, free_port, nginx_program

AT_ONCE = 4
TAKES_S = 0.05
SECONDS = 2


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """nginx; each test starts the replicas behind it."""
    with proxy_of(tmp_path_factory.mktemp("proxy"), compose.EXAMPLE_VALUES) as server:
        yield server


@contextlib.contextmanager
def proxy_of(folder: Path, variables: Mapping[str, str], tls_port: int | None = None) -> Iterator[Service]:
    """Start nginx as the compose file does with these variables, and on `tls_port` with TLS."""
    nginx_program()
    server = stand_ins.make("proxy", Places(folder, dict(variables)))
    if tls_port is not None:
        settings = (compose.ROOT / "deploy" / "nginx" / "tls.d" / "tls.conf").read_text()
        moved = server.places.path("proxy", "/etc/nginx/nginx.conf").parent / "tls.d" / "tls.conf"
        moved.parent.mkdir()
        here = settings.replace("listen 8443", f"listen {HOST}:{tls_port}").replace("/etc/nginx/tls", str(folder))
        moved.write_text(here)
        write_certificate(folder)
    with server:
        yield server


class Replica:
    """Takes TAKES_S per request, AT_ONCE requests at a time, and responds to others with 503, as the API does."""

    def __init__(self) -> None:
        self.busy = 0
        self.hangs = self.starts = False
        self.ended = asyncio.Event()
        self.connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Accept a new connection."""
        self.connections[writer] = asyncio.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                status = await self.answer()
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async def hang_up(self) -> None:
        """Close all connections."""
        self.ended.set()
        for writer, serving in self.connections.items():
            writer.close()
            await serving
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def answer(self) -> str:
        if self.hangs:
            await self.ended.wait()
        if self.starts or self.busy >= AT_ONCE:
            return "503 Service Unavailable"
        self.busy += 1
        await asyncio.sleep(TAKES_S)
        self.busy -= 1
        return "200 OK"


@contextlib.asynccontextmanager
async def replicas_behind(proxy: Service, *, one_hangs: bool = False, starting: int = 0) -> AsyncIterator[None]:
    """Start the replicas, the last ones not ready yet."""
    replicas = {name: Replica() for name in proxy.places.replicas}
    replicas[proxy.places.replicas[0]].hangs = one_hangs
    for name in proxy.places.replicas[len(replicas) - starting :]:
        replicas[name].starts = True
    async with contextlib.AsyncExitStack() as stack:
        for name, replica in replicas.items():
            server = await asyncio.start_server(replica.serve, HOST, proxy.places.ports[name])
            stack.push_async_callback(replica.hang_up)
            stack.callback(server.close)
        yield


async def press(proxy: Service, clients: int) -> Counter[int]:
    """Return status → number of responses."""
    statuses: Counter[int] = Counter()
    until = time.monotonic() + SECONDS

    async def client() -> None:
        async with Connection(proxy.port) as connection:
            while time.monotonic() < until:
                answer = await connection.ask("GET", "/scores")
                statuses[answer.status] += 1
                if answer.status != 200:
                    await asyncio.sleep(0.1)

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


def test_under_overload_replicas_keep_serving_at_capacity(proxy: Service) -> None:
    async def at_capacity_and_beyond() -> tuple[Counter[int], Counter[int]]:
        async with replicas_behind(proxy):
            return await press(proxy, clients=2 * AT_ONCE), await press(proxy, clients=6 * AT_ONCE)

    at_capacity, beyond = asyncio.run(at_capacity_and_beyond())
    assert set(beyond) == {200, 503}
    assert beyond[200] > at_capacity[200] / 2


def test_a_replica_that_never_responds_costs_time_but_no_request(proxy: Service) -> None:
    async def ask() -> list[int]:
        async with replicas_behind(proxy, one_hangs=True), Connection(proxy.port) as connection:
            return [(await connection.ask("GET", "/scores")).status for _ in range(4)]

    assert asyncio.run(ask()) == [200] * 4


def test_added_replicas_fail_no_request_before_they_are_ready(tmp_path: Path) -> None:
    async def ask(proxy: Service) -> Counter[int]:
        async with replicas_behind(proxy, starting=4):
            return await press(proxy, clients=AT_ONCE)

    with proxy_of(tmp_path, compose.EXAMPLE_VALUES | {"API_REPLICAS": "5"}) as proxy:
        statuses = asyncio.run(ask(proxy))
    assert set(statuses) == {200}


def test_other_machines_are_served_with_tls_only(tmp_path: Path) -> None:
    port = free_port()

    async def ask(proxy: Service) -> tuple[httpx.Response, httpx.Response]:
        trusting = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
        async with replicas_behind(proxy), httpx.AsyncClient(verify=trusting) as client:
            return await client.get(f"https://{HOST}:{port}/scores"), await client.get(f"http://{HOST}:{port}/scores")

    with proxy_of(tmp_path, compose.EXAMPLE_VALUES, port) as proxy:
        over_tls, without = asyncio.run(ask(proxy))
    assert over_tls.status_code == 200
    assert (without.status_code, without.headers["content-type"]) == (400, "application/problem+json")


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6Detrics", "/metrics//", "/webhooks/mlflow"])
def test_internal_routes_are_hidden_from_callers(proxy: Service, path: str) -> None:
    async def ask() -> Answer:
        async with replicas_behind(proxy), Connection(proxy.port) as connection:
            return await connection.ask("GET", path)

    answer = asyncio.run(ask())
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body).items() >= {"type": f"{TYPE_PREFIX}{NOT_FOUND.name}", "status": 404}.items()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", 400),  # and without a Host header
        (b"no request", 400),
        (b"GET /scores HTTP/3.0\r\nHost: h", 505),
        (b"TRACE /scores HTTP/1.1\r\nHost: h", 405),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1", 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 40_000, 400),
    ],
)
def test_refusals_of_the_proxy_are_problems(proxy: Service, request_line: bytes, status: int) -> None:
    with socket.create_connection((HOST, proxy.port), timeout=10) as client:
        client.sendall(request_line + b"\r\n\r\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert b"\r\nContent-Type: application/problem+json" in head
    assert json.loads(body)["status"] == status


@pytest.mark.parametrize("path", ["/scores", "/invocations", "/v2/models/m/infer"])
def test_refusals_of_the_proxy_have_the_format_of_each_protocol(proxy: Service, path: str) -> None:
    no_replica = httpx.post(f"http://{HOST}:{proxy.port}{path}", json={})
    too_large = httpx.post(f"http://{HOST}:{proxy.port}{path}", content=b" " * (33 << 20))
    assert (no_replica.status_code, too_large.status_code) == (503, 413)
    for answer, code in (no_replica, "TEMPORARILY_UNAVAILABLE"), (too_large, "BAD_REQUEST"):
        problem = answer.json()
        assert problem["detail"] == problem["error"] == problem["message"]
        assert problem["error_code"] == code
