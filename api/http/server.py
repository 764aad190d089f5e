"""uvicorn's server, with a shutdown in the order that a load balancer needs."""

import signal
import threading
import time
from types import FrameType
from typing import Any

import structlog
import uvicorn

from api.http.protocol import HttpProtocol
from scoring.settings import Settings

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """Drains on SIGTERM: /ready returns 503; after `drain_s` it stops accepting, and finishes the running requests.

    SIGINT or a second signal skips the wait. uvicorn stops accepting at the signal itself (0.54), when load balancers
    still send requests for a while.
    """

    def __init__(self, config: uvicorn.Config, stopping: threading.Event, drain_s: float) -> None:
        """Create a server without starting it.

        Args:
            config: uvicorn's.
            stopping: set at the first signal.
            drain_s: seconds between SIGTERM and the end of accepting.
        """
        super().__init__(config)
        self._stopping = stopping
        self._drain_s = drain_s
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to stop. Unlike uvicorn, do not raise the signal again: a requested stop is not a failure."""
        now = time.monotonic()
        if self._stopping.is_set() and self._stop_at is not None and now >= self._stop_at and sig == signal.SIGINT:
            self.force_exit = True
        at_once = sig == signal.SIGINT or self._stopping.is_set()
        self._stop_at = now if at_once else now + self._drain_s
        self._stopping.set()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop accepting now. uvicorn calls it ten times a second."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


def server_of(app: Any, settings: Settings, stopping: threading.Event) -> DrainingServer:
    """Make the server of one application, not running yet."""
    longest_s = settings.body_timeout_s + max(settings.deadline_s, settings.bulk_deadline_s)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        server_header=False,
        # Nothing here uses a client's address.
        proxy_headers=False,
        access_log=False,
        log_config=None,
        # A client that never reads its response must not keep the process alive.
        timeout_graceful_shutdown=int(longest_s) + 5,
    )
    return DrainingServer(config, stopping, settings.drain_s)
