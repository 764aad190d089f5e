"""The application: built here from the settings and, in tests, from parts that are passed in."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.static_files import create_static_files_router

from api.errors import MethodNotAllowed, RouteNotFound
from api.http.access import keys_from
from api.http.endpoint import ScoringEndpoint
from api.http.messages import to_litestar
from api.http.observability import ObservabilityMiddleware
from api.http.open_inference import OpenInferenceRoutes, has_path
from api.http.routes import STATIC, Description, Health, page_file
from api.http.webhooks import mlflow_webhook
from api.inference.batcher import MicroBatcher
from api.model.alias_follower import AliasFollower
from api.model.loading import Loader, RegistryLoader
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from api.protocols.answers import AnswerSchema
from api.protocols.json_format import JsonFormat
from api.protocols.mlflow_format import MlflowFormat
from api.protocols.open_inference_format import OpenInferenceFormat
from api.protocols.open_inference_metadata import error_response
from api.protocols.problems import problem_of, problem_response, type_of
from api.protocols.scores_format import ScoresFormat
from api.protocols.scoring import Scoring
from api.protocols.wire_format import WireFormat
from api.shadow.challenger import Challenger
from api.shadow.loading import ChallengerLoader
from api.telemetry.metrics import Metrics, ServingState
from api.telemetry.prediction_log import PredictionLog
from api.telemetry.request_context import RequestLog
from api.telemetry.tracing import Tracing, tracing_to
from scoring.models.registry import MlflowRegistry
from scoring.settings import Settings

# Methods that need no mention: each route has them.
IMPLIED = {"HEAD", "OPTIONS"}
# Time at the end of the process to write the rest of the prediction log.
LOG_FLUSH_S = 5.0


def create_app(
    settings: Settings,
    loader: Loader | None = None,
    stopping: threading.Event | None = None,
    challenger_loader: Loader | None = None,
) -> Litestar:
    """Build the API. It performs no I/O before the application's lifespan begins.

    Args:
        settings: the settings of the application.
        loader: loads model versions; from the MLflow and Feast registries of the settings by default.
        stopping: set by the server once the process is stopping.
        challenger_loader: loads challengers; as `loader` by default, and none with another `loader`.

    Raises:
        SettingsError: an API key is invalid, or the API would listen beyond loopback without keys.
    """
    keys = keys_from(settings)
    if loader is None:
        registry = MlflowRegistry.from_settings(settings)
        loader, challenger_loader = RegistryLoader(settings, registry), ChallengerLoader(settings, registry)
    stopping = stopping or threading.Event()
    slot, probe, metrics = ModelSlot(), StoreProbe(), Metrics()
    metrics.read_at_each_scrape(ServingState(slot, probe.breaker))
    batcher = MicroBatcher(settings.max_concurrent_requests, settings.max_waiting_requests, settings.deadline_s)
    prediction_log = PredictionLog(settings) if settings.prediction_log is not None else None
    if prediction_log is not None:
        metrics.read_at_each_scrape(prediction_log)
    tracing = tracing_to(settings.otlp_endpoint)
    follower = AliasFollower(settings, loader, slot, probe)
    challenger = None
    if challenger_loader is not None and settings.challenger_sample:
        busy, problem = (lambda: batcher.waiting), (lambda error: type_of(error).name)
        challenger = Challenger(settings, challenger_loader, slot, busy, problem, prediction_log)
        metrics.read_at_each_scrape(challenger)
    webhooks = []
    if settings.webhook_secret is not None:
        wake = [each.wake for each in (follower, challenger) if each is not None]
        webhooks.append(mlflow_webhook(settings.webhook_secret, settings, *wake))

    def handle_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        if isinstance(error, NotFoundException):
            error = RouteNotFound(_routes(app, formats))
        elif isinstance(error, MethodNotAllowedException):
            headers = {name.lower(): value for name, value in (error.headers or {}).items()}
            error = MethodNotAllowed(headers.get("allow", ""))
        respond = error_response if has_path(request.scope["path"]) else problem_response
        return to_litestar(respond(*problem_of(error, request.scope)))

    formats = wire_formats(settings)
    parts = {
        "settings": settings,
        "formats": formats,
        "slot": slot,
        "probe": probe,
        "challenger": challenger,
        "metrics": metrics,
        "stopping": stopping,
        "keys": keys,
        "index": (STATIC / "index.html").read_bytes(),
    }
    app = Litestar(
        route_handlers=[
            Health,
            Description,
            OpenInferenceRoutes,
            *webhooks,
            create_static_files_router(
                path="/static", directories=[STATIC], include_in_schema=False, guards=[page_file]
            ),
        ],
        dependencies={name: _provide(part) for name, part in parts.items()},
        exception_handlers={Exception: handle_error},
        lifespan=[lambda _: _running(batcher, follower, probe, slot, challenger, prediction_log, tracing)],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=settings.max_body_bytes,
    )
    request_log = RequestLog(sys.stderr.buffer) if settings.log_level in {"debug", "info"} else None
    scoring = Scoring(slot, probe.breaker, batcher, metrics, prediction_log, challenger)
    endpoint = ScoringEndpoint(app.asgi_handler, formats, settings, keys, scoring)
    routes = frozenset((*formats, *(route.path for route in app.routes)))
    # A request passes HttpProtocol (`api/http/server.py`), this middleware, and the endpoint or Litestar's own handler.
    app.asgi_handler = ObservabilityMiddleware(endpoint, routes, metrics, stopping, tracing, request_log)
    return app


@contextlib.asynccontextmanager
async def _running(
    batcher: MicroBatcher,
    follower: AliasFollower,
    probe: StoreProbe,
    slot: ModelSlot,
    challenger: Challenger | None,
    prediction_log: PredictionLog | None,
    tracing: Tracing | None,
) -> AsyncIterator[None]:
    """Run what works in the background of requests."""
    batcher.start()
    if prediction_log is not None:
        prediction_log.start()
    tasks = [
        asyncio.create_task(follower.run(), name="alias-follower"),
        asyncio.create_task(probe.run(lambda: slot.served.scorer if slot.served else None), name="store-probe"),
    ]
    if challenger is not None:
        tasks.append(asyncio.create_task(challenger.run(), name="challenger"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (batcher, probe, follower):
            each.stop()
        if challenger is not None:
            await challenger.stop()
        if prediction_log is not None:
            await asyncio.to_thread(prediction_log.stop, LOG_FLUSH_S)
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)


def wire_formats(settings: Settings) -> dict[str, WireFormat]:
    """Return path → wire format of all scoring routes. A segment `{name}` of a path is a parameter."""
    open_inference = OpenInferenceFormat(settings)
    return {
        "/inference": JsonFormat(AnswerSchema.inference, settings),
        "/scores": ScoresFormat(settings),
        "/invocations": MlflowFormat(settings),
        "/v2/models/{name}/infer": open_inference,
        "/v2/models/{name}/versions/{version}/infer": open_inference,
    }


def _routes(app: Litestar, formats: Iterable[str]) -> list[str]:
    """Return `METHOD path` of each route, without the static files of Swagger UI."""
    methods = {path: {"POST"} for path in formats} | {route.path_format: route.methods for route in app.routes}
    return [
        f"{method} {path}" for path in sorted(methods) if "/static" not in path for method in methods[path] - IMPLIED
    ]


def _provide(part: object) -> Provide:
    return Provide(lambda: part, use_cache=True, sync_to_thread=False)
