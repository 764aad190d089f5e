"""`python -m api`: serve online with the settings of the environment."""

import os
import signal
import socket
import sys
from types import FrameType

from api.app import create_app
from api.loading import RegistryLoader
from api.log import configure_logging
from api.server import server_of
from api.settled_loader import SettledLoader
from api.stopping import Stopping
from scoring.errors import SettingsError
from scoring.registry import MlflowRegistry
from scoring.settings import Settings

BACKLOG = 2048


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status: 2 for a wrong setting, 1 for an address that is taken."""
    stopping = Stopping()
    try:
        settings = Settings.from_environment(os.environ)
        loader = SettledLoader(RegistryLoader(settings, MlflowRegistry.from_settings(settings)))
        app = create_app(settings, loader, stopping)
    except SettingsError as error:
        print(f"api: {error}", file=sys.stderr)
        return 2
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        print(
            f"api: can't listen on {settings.host}:{settings.port} ({error.strerror or error}): "
            "set SERVING_HOST and SERVING_PORT to a free address.",
            file=sys.stderr,
        )
        return 1
    configure_logging(settings.log_level)
    # Until uvicorn handles them.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _end)
    server = server_of(app, settings, stopping)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
