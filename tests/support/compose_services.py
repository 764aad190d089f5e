"""A service of docker-compose.yml as a process: its command, variables, files, health check and stop signal."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import Any

from tests.support import dockerfile
from tests.support.places import Places, service_of
from tests.support.servers import HOST, Server, answers_http

# The stop signal of the image, where docker-compose.yml sets none.
STOP_SIGNALS = {"proxy": "SIGQUIT"}
PROGRAMS_OF_OTHERS = {"wget", "curl"}
MODULES_OF_PROGRAMS = {
    "dagster": "dagster",
    "dagster-daemon": "dagster._daemon",
    "dagster-webserver": "dagster_webserver",
}
DOCKERS_GRACE = "10s"


@dataclasses.dataclass(kw_only=True)
class Service(Server):
    """One process of the stack. `wanted` is what `docker stop` and `docker start` change."""

    process_name: str
    places: Places
    wanted: bool = dataclasses.field(default=False, init=False)
    status: int | None = dataclasses.field(default=None, init=False)
    """The exit status of the last `docker stop`."""
    has_started: bool = dataclasses.field(default=False, init=False)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock, init=False, repr=False)

    starts_within_s = 120.0
    warm = True

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

    def arguments_of_python(self, command: list[str]) -> list[str]:
        """See `Server`. The first start runs the command in a new interpreter, as a container does."""
        program, *arguments = command
        if not self.has_started:
            return []
        if program == "python" and arguments[0] == "-m":
            return arguments
        return ["-m", MODULES_OF_PROGRAMS[program], *arguments] if program in MODULES_OF_PROGRAMS else []

    @property
    def target(self) -> str:
        """The target of the Dockerfile that its image is built from."""
        target: str = self.definition["build"]["target"]
        return target

    def environment_of_process(self) -> dict[str, str]:
        """The environment of the image and docker-compose.yml, and this process's variables that locate programs."""
        own = self.places.moved_environment(self.process_name, self.variables_of_image() | {"TMPDIR": "/tmp"})
        return own | self.environment | self.variables_of_machine()

    def variables_of_image(self) -> dict[str, str]:
        """The environment that the image sets; each container has its own /tmp."""
        return dockerfile.environment(self.target) if "build" in self.definition else {}

    def variables_of_machine(self) -> dict[str, str]:
        """The locations on this machine of programs that the image contains."""
        return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    @property
    def environment(self) -> dict[str, str]:
        """The environment that docker-compose.yml sets."""
        return self.places.environment(self.process_name)

    def answers(self) -> bool:
        return self.listens() and self.healthy()

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    def healthy(self) -> bool:
        """Return whether its health check succeeds."""
        kind, *check = self.definition["healthcheck"]["test"]
        check = [self.places.moved(self.process_name, part) for part in check]
        if check[0] in PROGRAMS_OF_OTHERS:
            return answers_http(self.port, urllib.parse.urlsplit(check[-1]).path)
        command = ["sh", "-c", check[0]] if kind == "CMD-SHELL" else check
        return self.run(command).returncode == 0

    def run(self, command: list[str], timeout_s: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run another command with this process's environment, as `docker compose run` or `exec` does."""
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
            self.has_started = True

    def stop(self) -> None:
        """Stop it as docker does: the signal reaches the main process only, and when that ends, all others are killed.

        A process that outlives its grace period is killed; its exit status shows that.
        """
        with self.lock:
            self.wanted = False
            if self.process is None:
                return
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(self.stop_signal)
            try:
                self.status = self.process.wait(self.stops_within_s)
            except subprocess.TimeoutExpired:
                self.status = -signal.SIGKILL
            finally:
                self.kill()

    def crash(self) -> None:
        """Kill it and its children with SIGKILL. It stays wanted, so it is restarted."""
        process = self.process
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)


@dataclasses.dataclass(kw_only=True)
class Daemon(Service):
    """Dagster's daemon, which listens on no port."""

    logged: int = dataclasses.field(default=0, init=False)
    """The length of its log at its last start."""

    def answers(self) -> bool:
        """Return whether its log reports the start. Its health check takes three seconds of CPU time; see `healthy`."""
        return (
            "Instance is configured with the following daemons" in self.log.read_text(errors="replace")[self.logged :]
        )

    def start(self) -> None:
        with self.lock:
            self.logged = len(self.log.read_text(errors="replace")) if self.log.exists() else 0
            super().start()
