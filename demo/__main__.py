"""`make demo`: the whole product on embedded defaults, from raw data to a batch output and an online answer.

With `--once` it stops when it has shown both; else it stays up until Ctrl-C.
"""

import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType

from demo import show
from demo.dagit import Dagit, DagitRefused, Run
from demo.online import Api
from demo.place import DAGIT_PORT, DAGSTER_HOME, REQUEST, ROOT, CannotStart, demo_environment, make_folders
from demo.prepare import prepare
from demo.processes import Processes, check_port_free
from scoring.errors import ServingError
from scoring.settings import Settings

START_S = 90.0
RUN_S = 180.0


def main() -> int:
    """Run the demonstration; 0 when all was shown, 1 with the reason in one line when not."""
    once = "--once" in sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGHUP):  # a terminal that closes sends the second
        signal.signal(number, _as_interrupt)
    signal.signal(signal.SIGINT, _as_interrupt)  # a shell that starts us in the background sets it to be ignored
    os.chdir(ROOT)
    environment = demo_environment()
    processes = Processes(environment)
    try:
        settings = Settings.from_environment(environment)
        dagit_port = _check_place(settings, environment)
        os.environ.update(environment)
        warnings.showwarning = _say_nothing  # filters don't last: SQLAlchemy and MLflow set their own
        show.title()
        _demonstrate(settings, dagit_port, processes, once=once)
        if not once:
            _stay_up(processes)
        return 0
    except (CannotStart, ServingError, DagitRefused) as error:
        show.failure(str(error))
        return 1
    except KeyboardInterrupt:
        return 0 if not once else 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # else a second Ctrl-C would leave servers behind
        processes.stop()


def _check_place(settings: Settings, environment: dict[str, str]) -> int:
    text = environment.get(DAGIT_PORT, "3000")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise CannotStart(f"{DAGIT_PORT} is {text!r}: a port from 1 to 65535 is needed.")
    check_port_free(
        "127.0.0.1",
        int(text),
        "Dagit",
        f"stop what listens there, or choose another: make demo {DAGIT_PORT}=3100",
    )
    check_port_free(
        settings.host,
        settings.port,
        "the API",
        "stop what listens there, or choose another: SERVING_PORT=8272 make demo",
    )
    make_folders()
    shutil.copyfile(ROOT / "demo" / "dagster.yaml", DAGSTER_HOME / "dagster.yaml")
    return int(text)


def _demonstrate(settings: Settings, dagit_port: int, processes: Processes, *, once: bool) -> None:
    # The webserver loads while the model trains: the machine has two cores.
    workspace = ["-w", str(ROOT / "workspace.yaml")]
    processes.start(
        "dagit",
        [sys.executable, "-m", "dagster_webserver", *workspace, "-h", "127.0.0.1", "-p", str(dagit_port)],
    )
    prepare(settings)
    processes.start("api", [sys.executable, "-m", "api"])

    dagit, api = Dagit(dagit_port), Api(settings.port)
    _wait("Dagit", dagit.ready, processes, START_S)
    run_id = dagit.launch(REQUEST)
    _show_run(dagit, run_id, processes)
    # Only now: the sensors find that the version was already used, and start nothing of their own.
    processes.start("daemon", [sys.executable, "-m", "dagster._daemon", "run", *workspace])
    show.batch_output()

    _wait("the API", api.ready, processes, START_S)
    show.online(*api.rank([1001, 1002, 1003, 9999]))
    if not once:
        show.addresses(dagit.url, api.url)


def _show_run(dagit: Dagit, run_id: str, processes: Processes) -> Run:
    show.run_started(dagit.url, run_id)
    until, shown = time.monotonic() + RUN_S, set[str]()
    while True:
        processes.check()
        run = dagit.run(run_id)
        for step in run.steps:
            if step.status in {"SUCCESS", "FAILURE"} and step.asset not in shown:
                shown.add(step.asset)
                show.step(step)
        if run.ended:
            break
        if time.monotonic() > until:
            raise CannotStart(f"the run did not end within {RUN_S:.0f} s: {dagit.url}/runs/{run_id}")
        time.sleep(0.2)
    show.run_ended(run)
    if run.status != "SUCCESS":
        raise CannotStart(f"the run failed: {dagit.failure(run_id)}")
    return run


def _wait(what: str, ready: Callable[[], bool], processes: Processes, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready():
        processes.check()
        if time.monotonic() > until:
            raise CannotStart(f"{what} did not come up within {seconds:.0f} s: see var/logs.")
        time.sleep(0.1)


def _stay_up(processes: Processes) -> None:
    while True:
        processes.check()
        time.sleep(1)


def _say_nothing(*_: object, **__: object) -> None:
    """Feast's, MLflow's and SQLAlchemy's warnings of each other are nothing that a visitor could act on."""


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
