"""Counts, logs and traces every request, even if no route matches; answers HEAD as GET without a body."""

import threading
import time
from typing import cast

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api.telemetry.metrics import Metrics
from api.telemetry.request_context import RequestContext, RequestLog
from api.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
# Load balancers and Prometheus poll these every few seconds, so they are logged at debug.
MACHINE_ROUTES = frozenset(("/live", "/ready", "/ping", "/health", "/metrics")) | {
    *("/v2/health/live", "/v2/health/ready"),
    *("/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready"),
}
UNKNOWN = "other"


class ObservabilityMiddleware:
    """ASGI middleware outside Litestar's router, which answers 404 and 405 before its own middleware runs."""

    def __init__(
        self,
        app: ASGIApp,
        routes: frozenset[str],
        metrics: Metrics,
        stopping: threading.Event,
        tracing: Tracing | None,
        request_log: RequestLog | None,
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            routes: its paths.
            metrics: counts each request.
            stopping: set once the process is stopping.
            tracing: traces scoring requests, unless None.
            request_log: logs each request, unless None.
        """
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._stopping = stopping
        self._tracing = tracing
        self._request_log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started_at, status, method = time.perf_counter(), 500, scope["method"]
        RequestContext.start(scope)
        if method == "HEAD":
            scope = cast("HTTPScope", {**scope, "method": "GET"})

        async def send_observed(message: Message) -> None:
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
            await self._app(scope, receive, send_observed)
        finally:
            self._metrics.in_flight -= 1
            self._record(scope, method if method in METHODS else UNKNOWN, status, started_at)

    def _record(self, scope: HTTPScope, method: str, status: int, started_at: float) -> None:
        ended_at = time.perf_counter()
        route = self._route(scope)
        self._metrics.count_request(route, method, status, ended_at - started_at)
        context = RequestContext.of(scope)
        facts: dict[str, object] = {
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round((ended_at - started_at) * 1e3, 2),
            **context.facts(),
        }
        if self._tracing is not None and context.pending is not None:
            facts["trace_id"] = self._tracing.record(scope, route, status, started_at, ended_at, context)
        if route in MACHINE_ROUTES:
            log.debug("request", **facts)
        elif self._request_log is not None:
            self._request_log.write(facts)

    def _route(self, scope: HTTPScope) -> str:
        template = scope.get("path_template")
        if template:
            return template
        # Litestar sets no template for a known path with another method. All unknown paths share one name, because
        # clients can make up any number of them.
        return scope["path"] if scope["path"] in self._routes else UNKNOWN
