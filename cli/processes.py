"""Start servers, detect when one exits, and stop all of them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scoring.errors import ServingError

STOP_S = 10.0


class CannotStart(ServingError):
    """A server can't run. The message is one line that names the remedy."""


class Processes:
    """The running servers, each in its own process group, so that its children are stopped with it."""

    def __init__(self, environment: dict[str, str], folder: Path, stopping: Callable[[], None]) -> None:
        """Start nothing yet.

        Args:
            environment: the servers' environment.
            folder: their working directory, with their logs in logs/. Not the user's own folder, because Dagster 1.13
                lets a `.env` in it override the environment, and Docker Compose's `.env` is in the repository root.
            stopping: called before servers are stopped.
        """
        self._environment = environment
        self._folder = folder
        self._stopping = stopping
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one server. Its output goes to logs/<name>.log."""
        self.log(name).parent.mkdir(exist_ok=True)
        with self.log(name).open("wb") as log:
            self._started[name] = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Check that all servers are running.

        Raises:
            CannotStart: a server has exited. The message has its name, exit code, log file and the log's last line.
        """
        for name, process in self._started.items():
            code = process.poll()
            if code is not None:
                log = self.log(name)
                raise CannotStart(f"{name} exited with code {code}: {last_line(log)} ({log})")

    def log(self, name: str) -> Path:
        """Return the path of a server's log."""
        return self._folder / "logs" / f"{name}.log"

    def stop(self) -> None:
        """Stop all servers and wait for them: SIGTERM first, SIGKILL after STOP_S seconds."""
        if self._started:
            self._stopping()
        for process in self._started.values():
            _signal_group(process, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        for process in self._started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for process in self._started.values():
            _signal_group(process, signal.SIGKILL)  # this also kills children that outlive the server
            process.wait()
        self._started.clear()


def check_port_free(host: str, port: int, server: str, remedy: str) -> None:
    """Check that a server can listen on a port.

    Raises:
        CannotStart: the port is not available. The message names the port, the server and the remedy.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(f"{server} can't listen on port {port} of {host} ({error.strerror}): {remedy}") from None


def last_line(file: Path) -> str:
    """Return the last line of a log that is not blank."""
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
