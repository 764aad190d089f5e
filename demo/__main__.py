"""`make demo`: the whole product with embedded defaults, from raw data to a batch output, a response and its replay.

With `--once`, it exits after printing them. Otherwise, it runs until Ctrl-C.
"""

import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType

from cli.processes import CannotStart, Processes, check_port_free
from demo import show
from demo.dagit import Dagit, DagitRefused, Run
from demo.environment import (
    DAGIT_PORT,
    DAGSTER_HOME,
    MLFLOW_PORT,
    REQUEST,
    ROOT,
    STATE,
    demo_environment,
    make_folders,
)
from demo.events import Events
from demo.online import Api
from demo.prepare import prepare
from demo.replaying import replay_today
from demo.running import Ports, announced
from scoring.errors import ServingError
from scoring.settings import Settings

WORKSPACE = ("-w", str(ROOT / "workspace.yaml"))
START_S = 90.0
RUN_S = 180.0
POLL_S = 2.0
POLL_TIMEOUT_S = 5.0


def main() -> int:
    """Run the demo. Return 0 on success; otherwise print the reason in one line and return 1."""
    once = "--once" in sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closing terminal sends SIGHUP
        signal.signal(number, _as_interrupt)
    signal.signal(signal.SIGINT, _as_interrupt)  # a shell ignores it for background processes
    os.chdir(ROOT)
    environment = demo_environment()
    processes = Processes(environment, STATE, show.stopping)
    try:
        settings = Settings.from_environment(environment)
        dagit_port, mlflow_port = _prepare_state(settings, environment)
        os.environ.update(environment)
        warnings.showwarning = _ignore_warning  # a filter would not last, because SQLAlchemy and MLflow set their own
        show.title()
        events = _demonstrate(settings, dagit_port, processes)
        if not once:
            _start_background(settings, mlflow_port, processes)
            with announced(Ports(dagit=dagit_port, api=settings.port)):
                show.addresses(Dagit(dagit_port).url, Api(settings.port).url, f"http://127.0.0.1:{mlflow_port}")
                _stay_up(processes, events)
        return 0
    except (CannotStart, ServingError, DagitRefused) as error:
        show.failure(str(error))
        return 1
    except KeyboardInterrupt:
        return 0 if not once else 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave servers behind
        processes.stop()


def _prepare_state(settings: Settings, environment: dict[str, str]) -> tuple[int, int]:
    """Check the ports and create the folders of the demo's state. Return the ports of Dagit and of the MLflow UI."""
    dagit_port, mlflow_port = _port(environment, DAGIT_PORT, 3000), _port(environment, MLFLOW_PORT, 5001)
    for host, port, server, example in (
        ("127.0.0.1", dagit_port, "Dagit", f"make demo {DAGIT_PORT}=3100"),
        ("127.0.0.1", mlflow_port, "MLflow", f"make demo {MLFLOW_PORT}=5100"),
        (settings.host, settings.port, "the API", "SERVING_PORT=8272 make demo"),
    ):
        check_port_free(host, port, server, f"stop the process that uses it, or choose another port: {example}")
    make_folders()
    shutil.copyfile(ROOT / "demo" / "dagster.yaml", DAGSTER_HOME / "dagster.yaml")
    return dagit_port, mlflow_port


def _port(environment: dict[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise CannotStart(f"{variable} is {text!r}: it must be a port from 1 to 65535.")
    return int(text)


def _demonstrate(settings: Settings, dagit_port: int, processes: Processes) -> Events:
    # The webserver loads while the model trains.
    processes.start(
        "dagit",
        [sys.executable, "-m", "dagster_webserver", *WORKSPACE, "-h", "127.0.0.1", "-p", str(dagit_port)],
    )
    prepare(settings)
    processes.start("api", [sys.executable, "-m", "api"])

    dagit, api = Dagit(dagit_port), Api(settings.port)
    _wait("Dagit", dagit.ready, processes, START_S)
    run_id = dagit.launch(REQUEST)
    _show_run(dagit, run_id, processes)
    events = Events(settings.mlflow_tracking_uri, api, Dagit(dagit_port, POLL_TIMEOUT_S))
    show.batch_output()

    _wait("the API", api.ready, processes, START_S)
    asked = time.time()
    show.online(*api.rank([1001, 1002, 1003, 9999]))
    if settings.prediction_log is not None:  # in demo_environment, it is
        show.replayed(replay_today(settings.prediction_log, settings, asked))
    return events


def _start_background(settings: Settings, port: int, processes: Processes) -> None:
    """Start Dagster's daemon and the MLflow UI. They load last, because nothing that is shown before waits for them.

    The sensors of the daemon see then that the version is already in use, and launch no run.
    """
    processes.start("daemon", [sys.executable, "-m", "dagster._daemon", "run", *WORKSPACE])
    server = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    processes.start(
        "mlflow", [sys.executable, "-m", "mlflow", *server, "--backend-store-uri", settings.mlflow_tracking_uri]
    )


def _show_run(dagit: Dagit, run_id: str, processes: Processes) -> Run:
    show.run_started(dagit.url, run_id)
    until, reported = time.monotonic() + RUN_S, set[str]()
    while True:
        processes.check()
        run = dagit.run(run_id)
        for step in run.steps:
            if step.status in {"SUCCESS", "FAILURE"} and step.asset not in reported:
                reported.add(step.asset)
                show.step(step)
        if run.ended:
            break
        if time.monotonic() > until:
            raise CannotStart(f"the run did not finish within {RUN_S:.0f} s: see {dagit.url}/runs/{run_id}")
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
            raise CannotStart(f"{what} did not start within {seconds:.0f} s: see var/logs.")
        time.sleep(0.1)


def _stay_up(processes: Processes, events: Events) -> None:
    while True:
        processes.check()
        events.print_new()
        time.sleep(POLL_S)


def _ignore_warning(*_: object, **__: object) -> None:
    """Ignore a warning: users can't act on those of Feast, MLflow and SQLAlchemy."""


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
