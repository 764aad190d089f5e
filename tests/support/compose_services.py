"""A service of docker-compose.yml as a process: its command, variables, files, health check and way to stop."""

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
        """As docker does: the signal reaches the main process only, and when that is gone, so are all others.

        One that is still there when its time is over is killed, which its status tells.
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
        """kill -9, and whatever it started with it. It stays wanted."""
        process = self.process
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)


@dataclasses.dataclass(kw_only=True)
class Daemon(Service):
    """Dagster's daemon, which listens nowhere."""

    said: int = dataclasses.field(default=0, init=False)
    """Length of its log when it was started."""

    def answers(self) -> bool:
        """As soon as it says so: its own health check takes three seconds of CPU, see `healthy`."""
        return "Instance is configured with the following daemons" in self.log.read_text(errors="replace")[self.said :]

    def start(self) -> None:
        with self.lock:
            self.said = len(self.log.read_text(errors="replace")) if self.log.exists() else 0
            super().start()
