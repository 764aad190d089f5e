"""uvicorn's server, stopped in the order that a load balancer needs."""

import signal
import threading
import time
from types import FrameType
from typing import Any

import structlog
import uvicorn

from api.http.protocol import OneWriteProtocol
from scoring.settings import Settings

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """On SIGTERM: /ready 503, wait `drain_s`, stop accepting, finish what runs. On SIGINT, or a second signal: at once.

    uvicorn stops accepting at the signal itself (0.54), when load balancers still send requests here for a while.
    """

    def __init__(self, config: uvicorn.Config, stopping: threading.Event, drain_s: float) -> None:
        """Args: uvicorn's own, whom to tell, and how long to wait."""
        super().__init__(config)
        self._stopping = stopping
        self._drain_s = drain_s
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to stop. Unlike uvicorn's, never raises the signal again at the end: being stopped is no failure."""
        now = time.monotonic()
        if self._stopping.is_set() and self._stop_at is not None and now >= self._stop_at and sig == signal.SIGINT:
            self.force_exit = True
        at_once = sig == signal.SIGINT or self._stopping.is_set()
        self._stop_at = now if at_once else now + self._drain_s
        self._stopping.set()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second: whether to stop accepting now."""
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


def server_of(app: Any, settings: Settings, stopping: threading.Event) -> DrainingServer:
    """The server of one application, not yet running."""
    longest_s = settings.body_timeout_s + settings.deadline_s
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=OneWriteProtocol,
        ws="none",
        lifespan="on",
        server_header=False,
        # Nobody here asks where a request came from.
        proxy_headers=False,
        access_log=False,
        log_config=None,
        # A client that never reads its answer must not keep the process.
        timeout_graceful_shutdown=int(longest_s) + 5,
    )
    return DrainingServer(config, stopping, settings.drain_s)
