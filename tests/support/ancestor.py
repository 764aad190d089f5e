"""The process that `tests.support.warm` forks: `python -m tests.support.ancestor NAME_OF_ITS_SOCKET`.

Trials of the API, and code locations and runs of Dagster, are forked from it as well.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing.context
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import popen_spawn_posix, resource_tracker
from pathlib import Path
from typing import IO, Any
from unittest import mock

from scoring.models.trial_process import end_with_parent
from tests.support import warm

# None of these reads the environment when it is imported.
MODULES = (
    "api.app",
    "api.model.settled_loader",
    "dagster._cli",
    "dagster._daemon.cli",
    "feast.infra.online_stores.sqlite",
    "feast.infra.passthrough_provider",
    "feast.infra.registry.file",
    "mlflow.server.fastapi_app",
    "redis.asyncio",
    "scoring.batch.on_demand_blocks",
    "scoring.feast_plugins.offline_store",
    "serving_assets.sensors.schedules",
    "uvicorn.main",
)
BEYOND_ALL_OTHERS = 500  # a file descriptor


def main(address: str) -> None:
    """Import the libraries. Then fork at each request, and run the request in the fork."""
    import_libraries()
    warm.address = lambda: address
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; pytest stops the servers
    request = serve(address)
    status = 1
    try:
        status = become(request)
    except BaseException:
        traceback.print_exc()
    finally:
        # A normal exit would search the objects of all libraries for garbage, and report what is left.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def import_libraries() -> None:
    import prometheus_client  # noqa: F401  # before Feast 0.67, which would make it keep its values in files

    from scoring.imports import collector_paused, import_feast, import_model_libraries

    import_model_libraries()
    import_feast()
    with collector_paused(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's server uses what others deprecate
        for module in MODULES:
            importlib.import_module(module)
        import dagster._grpc.server

        import api.shadow.process
        from scoring.models import trial_process
    gc.freeze()
    trial_process.start = api.shadow.process.start = start_trial
    dagster._grpc.server.open_ipc_subprocess = start_code_location
    multiprocessing.context.SpawnProcess._Popen = staticmethod(start_run)


def start_trial(module: Sequence[str], stderr: IO[bytes], pass_fds: Sequence[int] = ()) -> warm.WarmProcess:
    """Replace `scoring.models.trial_process.start`."""
    return warm.start(["-m", *module], os.environ, cwd=Path.cwd(), stderr=stderr, pass_fds=pass_fds)


def start_code_location(parts: Sequence[str], cwd: str | None, env: Mapping[str, str]) -> warm.WarmProcess:
    """Replace Dagster's `open_ipc_subprocess`."""
    return start_in_group(parts[1:], env, cwd=Path(cwd or Path.cwd()))


def start_in_group(arguments: Sequence[str], environment: Mapping[str, str], **options: Any) -> warm.WarmProcess:
    return warm.start(arguments, environment, stdout=1, stderr=2, group=os.getpgrp(), **options)


class RunPopen(popen_spawn_posix.Popen):
    """A run of Dagster: a process of multiprocessing's method `spawn`."""

    def _launch(self, process: object) -> None:
        resource_tracker.ensure_running()
        with mock.patch("multiprocessing.util.spawnv_passfds", self._spawn):
            super()._launch(process)

    def _spawn(self, _path: bytes, command: Sequence[str], files: Sequence[int]) -> int:
        arguments, files = command[command.index("-c") :], sorted(set(files))
        self._process = start_in_group(arguments, os.environ, cwd=Path.cwd(), pass_fds=files)
        return self._process.pid

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        self.returncode = self._process.poll() if flag else self._process.wait()
        return self.returncode


def start_run(process: object) -> RunPopen:
    return RunPopen(process)


def serve(address: str) -> dict[str, Any]:
    """Fork at each request. Return the request, in the fork."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                os._exit(0)
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    return watched(connection)
            with contextlib.suppress(ChildProcessError):  # there is none
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def watched(connection: socket.socket) -> dict[str, Any]:
    """Fork again, and report the exit status of that fork. Return the request, in that fork."""
    message, files, *_ = socket.recv_fds(connection, 1 << 20, 20)
    request: dict[str, Any] = json.loads(message) | {"files": files}
    process = os.fork()
    if process == 0:
        connection.close()
        return request
    for file in files:
        os.close(file)
    os.setpgid(process, request["group"])
    with contextlib.suppress(OSError):
        connection.send(str(process).encode())
    with os.fdopen(os.pidfd_open(process)) as ended:
        if ended not in select.select([ended, *([] if request["group"] else [connection])], [], [])[0]:
            os.killpg(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def become(request: Mapping[str, Any]) -> int:
    """Do what a new interpreter does. Return its exit status."""
    files = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, BEYOND_ALL_OTHERS) for file in request["files"]]
    for number in request["files"]:
        os.close(number)
    for number, file in zip((0, 1, 2, *request["pass_fds"]), files, strict=True):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not request["group"]:
        end_with_parent()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    kind, program, *arguments = request["arguments"]
    Path("/proc/self/comm").write_text(program[:15])  # the name in `ps` and `top`
    sys.argv = [kind, *arguments]
    sys.path.insert(0, request["cwd"])
    warnings.filterwarnings("ignore", module="runpy")  # the module may be imported already
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})  # noqa: S102
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


if __name__ == "__main__":
    main(f"\0{sys.argv[1]}")
