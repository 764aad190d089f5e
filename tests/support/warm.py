"""Runs Python in a fork of a process that has the libraries imported, which takes ten seconds of CPU time.

The demo, the command line and the first start of each service of the full stack run in new interpreters instead.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


class WarmProcess:
    """A process with the interface of subprocess.Popen."""

    def __init__(self, connection: socket.socket) -> None:
        """Wait until it exists. The connection is the one to its parent, which reports its status."""
        self._connection, self._lock = connection, threading.Lock()
        self.pid = int(connection.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, seconds: float | None) -> int | None:
        with contextlib.suppress(ValueError):  # another thread has closed the connection
            if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
                with self._lock:
                    if self.returncode is None:
                        self.returncode = int(self._connection.recv(100) or -signal.SIGKILL)
                        self._connection.close()
        return self.returncode

    def __enter__(self) -> "WarmProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: Path,
    stderr: int | IO[bytes],
    stdout: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    group: int = 0,
) -> WarmProcess:
    """Run `python` with `-m` or `-c` and more arguments. Its input is /dev/null, and so is its output by default.

    It joins the process group, or has one of its own and is killed when this process ends.
    """
    request: dict[str, Any] = {"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)}
    request |= {"pass_fds": list(pass_fds), "group": group}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address())
    with Path(os.devnull).open("r+b") as null:
        files = (null, stdout or null, stderr, *pass_fds)
        numbers = [each if isinstance(each, int) else each.fileno() for each in files]
        socket.send_fds(connection, [json.dumps(request).encode()], numbers)
    return WarmProcess(connection)


def run(arguments: Sequence[str], environment: Mapping[str, str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `python` with these arguments, as `start` does. Return what it printed."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        status = start(arguments, environment, cwd=cwd, stdout=stdout, stderr=stderr).wait(120)
        printed = []
        for file in (stdout, stderr):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, status, *printed)


@functools.cache
def address() -> str:
    """Return the address of the process that is forked. Forks of it know the address, too."""
    name = str(uuid.uuid4())
    command = [sys.executable, "-m", "tests.support.ancestor", name]
    ancestor = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(ancestor.communicate)  # it ends when its input is closed
    assert ancestor.stdout is not None
    assert ancestor.stdout.readline() == b"ready\n"
    return f"\0{name}"
