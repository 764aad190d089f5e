"""Around every request, also one that no route takes: counted, logged, traced; HEAD answered as GET without body."""

import threading
import time
from typing import cast

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api.telemetry.metrics import Metrics
from api.telemetry.request_context import RequestContext
from api.telemetry.request_log import RequestLog
from api.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
# Requested every few seconds by machines: not worth a line each.
MACHINE_ROUTES = frozenset(("/live", "/ready", "/metrics"))
UNKNOWN = "other"


class ObservabilityMiddleware:
    """ASGI middleware outside Litestar's router, which answers 404 and 405 before its own middleware begins."""

    def __init__(
        self,
        app: ASGIApp,
        routes: frozenset[str],
        metrics: Metrics,
        stopping: threading.Event,
        tracing: Tracing | None,
        lines: RequestLog | None,
    ) -> None:
        """Args: what answers, the paths that it has, and who is told."""
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._stopping = stopping
        self._tracing = tracing
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        began, status, method = time.perf_counter(), 500, str(scope["method"])
        if method == "HEAD":
            scope = cast("HTTPScope", {**scope, "method": "GET"})

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._stopping.is_set():
                    # The next request on this connection would find it closed.
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif method == "HEAD" and message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        self._metrics.in_flight += 1
        try:
            await self._app(scope, receive, note_status)
        finally:
            self._metrics.in_flight -= 1
            self._tell(scope, method, status, began)

    def _tell(self, scope: HTTPScope, method: str, status: int, began: float) -> None:
        ended = time.perf_counter()
        route = self._route(scope)
        method = method if method in METHODS else UNKNOWN
        self._metrics.answered(route, method, status, ended - began)
        context = RequestContext.of(scope)
        facts = {"method": method, "route": route, "status": status, "duration_ms": round((ended - began) * 1e3, 2)}
        facts |= context.facts()
        if self._tracing is not None and context.pending is not None:
            facts["trace_id"] = self._tracing.record(scope, route, status, began, ended, context)
        if route in MACHINE_ROUTES:
            log.debug("request", **facts)
        elif self._lines is not None:
            self._lines.tell(facts)

    def _route(self, scope: HTTPScope) -> str:
        template = scope.get("path_template")
        if template:
            return template
        # A known path with another method; anything else is the caller's invention, and there is no end of those.
        return scope["path"] if scope["path"] in self._routes else UNKNOWN
