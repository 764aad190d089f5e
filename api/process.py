"""The process that serves online with the settings of the environment, from its start to its end."""

import functools
import os
import socket
import sys
import threading

from api.app import create_app
from api.http.server import server_of
from api.model.loading import RegistryLoader
from api.model.settled_loader import SettledLoader
from api.telemetry.log import configure_logging
from scoring.errors import SettingsError
from scoring.models.registry import MlflowRegistry
from scoring.models.trial_load import validate_in_trial
from scoring.models.trial_process import PreforkedTrial
from scoring.settings import Settings

BACKLOG = 2048


def serve() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status: 2 for a wrong setting, 1 for an address that is taken."""
    stopping, trial = threading.Event(), PreforkedTrial()
    try:
        settings = Settings.from_environment(os.environ)
        registry = MlflowRegistry.from_settings(settings)
        loader = RegistryLoader(settings, registry, functools.partial(validate_in_trial, run=trial.run))
        app = create_app(settings, SettledLoader(loader), stopping)
        _listen(settings).close()  # whoever took the address is told of before the imports, which take seconds
        configure_logging(settings.log_level)
        if sys.platform == "linux":  # elsewhere libraries that are only imported may have threads already
            trial.fork()
        listener = _listen(settings)  # now that there is somebody to answer who connects
    except SettingsError as error:
        print(f"api: {error}", file=sys.stderr)
        return 2
    except AddressTaken as error:
        print(f"api: {error}", file=sys.stderr)
        return 1
    server = server_of(app, settings, stopping)
    server.run(sockets=[listener])
    return 0 if server.started else 1


class AddressTaken(Exception):
    """The API can't listen where it should."""

    def __init__(self, settings: Settings, error: OSError) -> None:
        super().__init__(
            f"can't listen on {settings.host}:{settings.port} ({error.strerror or error}): "
            "set SERVING_HOST and SERVING_PORT to a free address."
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise AddressTaken(settings, error) from error
