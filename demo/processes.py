"""Start the demonstration's servers, notice when one dies, and end all of them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from demo import show
from demo.place import LOGS, STATE, CannotStart

STOP_S = 10.0


class Processes:
    """The servers that were started, each in a process group of its own, so that its children end with it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one server; its output goes to var/logs/<name>.log.

        In var/, because Dagster lets a `.env` in the working directory override what it is given (1.13), and Docker
        Compose's lies in the repository's root.
        """
        with log_file(name).open("wb") as log:
            self._started[name] = subprocess.Popen(
                command,
                cwd=STATE,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise if one of the servers has ended.

        Raises:
            CannotStart: it names the server, its exit code, its log and the log's last line.
        """
        for name, process in self._started.items():
            code = process.poll()
            if code is not None:
                raise CannotStart(f"{name} ended with exit code {code}: {last_line(log_file(name))} ({log_file(name)})")

    def stop(self) -> None:
        """End all servers and wait for them: politely first, then by force after STOP_S seconds."""
        if self._started:
            show.stopping()
        for process in self._started.values():
            _signal_group(process, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        for process in self._started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        for process in self._started.values():
            _signal_group(process, signal.SIGKILL)  # also what a server left behind in its group
            process.wait()
        self._started.clear()


def check_port_free(host: str, port: int, what: str, remedy: str) -> None:
    """Raise if somebody listens there.

    Raises:
        CannotStart: one line with the port, who needs it and what to do.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"Port {port} of {host}, which {what} needs, can't be had ({error.strerror}): {remedy}"
            ) from None


def log_file(name: str) -> Path:
    """Where a server's output goes."""
    return LOGS / f"{name}.log"


def last_line(file: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
