"""`model-serving serve` and `up`: the API alone, or with Dagster's webserver and daemon."""

import http.client
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.configuration import DAGSTER_HOME, DAGSTER_HOME_KEY, configuration, setting_option, settings_options
from cli.display import progress
from cli.processes import CannotStart, Processes, check_port_free
from scoring.errors import StorageError

if TYPE_CHECKING:
    from scoring.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
START_S, POLL_S, TIMEOUT_S = 120.0, 1.0, 5.0

SERVE_EPILOG = """
\b
Example:
  model-serving serve --port 8272
"""
UP_EPILOG = """
\b
Example:
  model-serving up --dagit-port 3100
"""


@click.command(epilog=SERVE_EPILOG, short_help="Run the API.")
@setting_option("--host", help="Address to listen on. [default: 127.0.0.1]")
@setting_option("--port", help="Port to listen on. [default: 8172]")
@settings_options
def serve() -> None:
    """Run the API until SIGTERM or Ctrl-C, as `python -m api`."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "api"], _with_project(configuration()[0]))  # noqa: S606


@click.command(epilog=UP_EPILOG, short_help="Run the API, Dagit and Dagster's daemon.")
@setting_option("--host", help="Address that the API listens on. [default: 127.0.0.1]")
@setting_option("--port", help="Port that the API listens on. [default: 8172]")
@click.option("--dagit-port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@settings_options
def up(dagit_port: int) -> None:
    """Run the API, the Dagster UI (Dagit) and Dagster's daemon until Ctrl-C.

    DAGSTER_HOME (dagster_home in serving.toml) keeps the run history and the logs, by default the folder dagster_home.
    It is created with the configuration for one machine, and so is the request folder.
    """
    given, settings = configuration()
    home = Path(given.get(DAGSTER_HOME) or DAGSTER_HOME_KEY).absolute()
    for server, host, port, remedy in (
        ("the API", settings.host, settings.port, "--port"),
        ("Dagit", "127.0.0.1", dagit_port, "--dagit-port"),
    ):
        check_port_free(host, port, server, f"stop the process that uses it, or choose another port with {remedy}.")
    _make_folders(home, settings)
    processes = Processes(_absolute(given, settings, home), home, lambda: click.echo("Stopping."))
    try:
        _start(processes, settings, dagit_port)
        click.echo(f"Swagger UI          http://{_local_host(settings)}:{settings.port}/")
        click.echo(f"Dagster UI (Dagit)  http://127.0.0.1:{dagit_port}/")
        click.echo(f"Batch requests      {settings.batch_requests}")
        click.echo(f"Logs                {home / 'logs'}")
        _stay_up(processes, settings)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave servers behind
        processes.stop()


def _with_project(given: dict[str, str]) -> dict[str, str]:
    """Return an environment in which Python finds this project's packages."""
    return given | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), given.get("PYTHONPATH"))))}


def _absolute(given: dict[str, str], settings: "Settings", home: Path) -> dict[str, str]:
    """Return the environment of servers with another working directory."""
    from scoring.files.location import Location
    from scoring.settings import variable_names

    variables, found = variable_names(), {}
    for field, variable in variables.items():
        value = getattr(settings, field)
        path = value.local if isinstance(value, Location) else value
        if isinstance(path, Path):
            found[variable] = str(path.absolute())
    for field in ("mlflow_tracking_uri", "mlflow_registry_uri"):
        uri = getattr(settings, field)
        if uri and uri.startswith("sqlite:///"):
            found[variables[field]] = f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
        elif uri and "://" not in uri:
            found[variables[field]] = str(Path(uri).absolute())
    found[variables["drain_s"]] = given.get(variables["drain_s"], "0")  # no load balancer needs to notice that it stops
    found |= {DAGSTER_HOME: str(home), "DAGSTER_DISABLE_TELEMETRY": "yes", "PYTHONUNBUFFERED": "1"}
    return _with_project(given | found)


def _make_folders(home: Path, settings: "Settings") -> None:
    for folder in filter(None, (home, settings.batch_requests.local)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError("creating", str(folder), error) from None
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(ROOT / "serving_assets" / "dagster.yaml", home / "dagster.yaml")


def _local_host(settings: "Settings") -> str:
    """Return the host at which this machine reaches the API, as in a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _get(host: str, port: int, path: str) -> bytes | None:
    """Return the body of a response, also of an error; None if there is no response."""
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _start(processes: Processes, settings: "Settings", dagit_port: int) -> None:
    """Start all servers, and wait until the API and Dagit respond."""
    workspace = ["-w", str(ROOT / "workspace.yaml")]
    api = _local_host(settings), settings.port, "/live"
    addresses = {"dagit": ("127.0.0.1", dagit_port, "/server_info"), "api": api}
    port = ["-h", "127.0.0.1", "-p", str(dagit_port)]
    processes.start("dagit", [sys.executable, "-m", "dagster_webserver", *workspace, *port])
    processes.start("api", [sys.executable, "-m", "api"])
    until = time.monotonic() + START_S
    with progress() as shown:
        shown.stage("Starting the API and Dagster")
        for name, address in addresses.items():
            while _get(*address) is None:
                processes.check()
                if time.monotonic() > until:
                    raise CannotStart(f"{name} did not respond within {START_S:.0f} s: see {processes.log(name)}.")
                time.sleep(POLL_S / 4)
            if name == "dagit":  # two processes must not create Dagster's databases at the same time
                processes.start("daemon", [sys.executable, "-m", "dagster._daemon", "run", *workspace])


def _stay_up(processes: Processes, settings: "Settings") -> None:
    """Print what /ready says whenever it changes."""
    last = None
    while True:
        processes.check()
        body = _get(_local_host(settings), settings.port, "/ready")
        try:
            state = json.loads(body or b"{}")
            model = state.get("model") or {}
            now = f"serves {model['name']}/{model['version']}" if state.get("ready") else state.get("detail")
        except (ValueError, LookupError, AttributeError):
            now = None
        if now is not None and now != last:
            click.echo(f"{time.strftime('%H:%M:%S')} API: {now}")
            last = now
        time.sleep(POLL_S)
