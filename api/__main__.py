"""`python -m api`: run the API with the settings of the environment."""

import atexit
import errno
import functools
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scoring.settings import Settings

BACKLOG = 2048


class AddressUnavailable(Exception):
    """The API can't listen on the address of the settings."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            super().__init__(f"{address} is already in use: set SERVING_PORT to a free port.")
            return
        why = (error.strerror or str(error)).partition(" (while ")[0]  # Python appends the address
        super().__init__(f"can't listen on {address} ({why}): set SERVING_HOST and SERVING_PORT to a free address.")


def main() -> int:
    """Serve until SIGTERM or SIGINT.

    Returns the exit status: 2 for an invalid setting, 1 for an unavailable address.
    """
    # Handle stop signals before the imports, which take about a second. uvicorn replaces these handlers.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _exit)
    from scoring.imports import import_first, import_mlflow

    import_first()
    from api.app import create_app
    from api.http.server import server_of
    from api.model.loading import RegistryLoader
    from api.model.settled_loader import SettledLoader
    from api.shadow.loading import ChallengerLoader
    from api.telemetry.log import configure_logging
    from scoring.errors import SettingsError
    from scoring.models.registry import MlflowRegistry
    from scoring.models.trial_load import validate_in_trial
    from scoring.models.trial_process import PreforkedTrial
    from scoring.settings import Settings

    stopping, trial = threading.Event(), PreforkedTrial()
    try:
        settings = Settings.from_environment(os.environ)
        registry = MlflowRegistry.from_settings(settings)
        loader = RegistryLoader(settings, registry, functools.partial(validate_in_trial, run=trial.run))
        app = create_app(settings, SettledLoader(loader), stopping, ChallengerLoader(settings, registry))
        _listen(settings).close()  # reports an unavailable address before the trial's imports, which take seconds
        configure_logging(settings.log_level)
        if sys.platform == "linux":  # elsewhere libraries that are only imported may have started threads
            import_mlflow()  # once, for the trial, too
            trial.fork()
        listener = _listen(settings)  # listen only once requests can be served
    except (SettingsError, AddressUnavailable) as error:
        print(f"api: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    server = server_of(app, settings, stopping)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _listen(settings: "Settings") -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise AddressUnavailable(settings.host, settings.port, error) from error


def _exit(number: int, _frame: FrameType | None) -> None:
    # Exit without raising, because a module that is being imported may catch the exception or print its traceback.
    # Nothing needs cleaning up before the API serves; the trial's process ends with this one.
    os._exit(0 if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    STATUS = main()
    atexit._run_exitfuncs()  # Feast removes a folder of its own
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would wait for MLflow's threads, which may still be downloading files (a ThreadPoolExecutor, mlflow 3.17).
    os._exit(STATUS)
