"""The routes of the Open Inference Protocol besides inference: health and metadata."""

import threading
from typing import Any

import msgspec
from litestar import Controller, MediaType, Request, Response, get
from litestar.di import NamedDependency

from api.errors import NotReady
from api.http.openapi import API_VERSION
from api.http.readiness import readiness
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from api.protocols.open_inference_metadata import (
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    check_served,
    metadata,
)
from scoring.settings import Settings

ROOT = "/v2"
MODEL = ["/models/{name:str}", "/models/{name:str}/versions/{version:str}"]


def has_path(path: str) -> bool:
    """Return whether errors at this path have the protocol's form, also if no route has it."""
    return path == ROOT or path.startswith(f"{ROOT}/")


class OpenInferenceRoutes(Controller):
    """Routes for clients and load balancers. They respond at once, and need no key."""

    path = ROOT

    @get("/")
    async def server(self) -> Response[bytes]:
        """Describe the server."""
        return _json(ServerMetadata("model-serving", API_VERSION))

    @get("/health/live")
    async def live(self) -> Response[bytes]:
        """Respond while the process is up."""
        return _json(ServerLive())

    @get("/health/ready")
    async def ready(
        self,
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        probe: NamedDependency[StoreProbe],
        stopping: NamedDependency[threading.Event],
    ) -> Response[bytes]:
        """Return 200 exactly when GET /ready does."""
        _check_ready(settings, slot, probe, stopping)
        return _json(ServerReady())

    @get([f"{path}/ready" for path in MODEL])
    async def model_ready(
        self,
        request: Request[Any, Any, Any],
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        probe: NamedDependency[StoreProbe],
        stopping: NamedDependency[threading.Event],
    ) -> Response[bytes]:
        """Return 200 if this model, in this version, serves and GET /ready returns 200."""
        served = slot.current()
        check_served(served, request.path_params)
        _check_ready(settings, slot, probe, stopping)
        return _json(ModelReady(served.scorer.version.name))

    @get(MODEL)
    async def model(self, request: Request[Any, Any, Any], slot: NamedDependency[ModelSlot]) -> Response[bytes]:
        """Describe the model that serves: its version, inputs and outputs."""
        served = slot.current()
        check_served(served, request.path_params)
        return _json(metadata(served))


def _check_ready(settings: Settings, slot: ModelSlot, probe: StoreProbe, stopping: threading.Event) -> None:
    problem = readiness(settings, slot, probe, stopping)[1]
    if problem is not None:
        raise NotReady(problem)


def _json(body: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type=MediaType.JSON, headers={"Cache-Control": "no-store"})
