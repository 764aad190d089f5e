"""The routes besides scoring: health, metrics, the current version, and the API's description."""

import functools
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from litestar import Controller, MediaType, Request, Response, get
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from prometheus_client.exposition import generate_latest

from api.http.access import Keys
from api.http.messages import headers_of
from api.http.openapi import Live, Version, describe
from api.http.readiness import readiness, readiness_response
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from api.protocols.answers import model_of
from api.protocols.response import header_value
from api.shadow.challenger import Challenger
from api.telemetry.metrics import Metrics
from scoring.settings import Settings

STATIC = Path(__file__).parent / "static"
# The page works without the internet; this policy enforces it.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


_version_of = functools.cache(metadata.version)
PAGE_FILES = frozenset(str(file.relative_to(STATIC)) for file in STATIC.rglob("*"))


async def page_file(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Raise NotFoundException unless the page has this file.

    A Litestar guard: its static files router passes any name to the file system, which fails for some (2.25).
    """
    if str(connection.path_params["file_path"]).strip("/") not in PAGE_FILES:
        raise NotFoundException


class Health(Controller):
    """Routes for operators and load balancers. They respond at once: none waits for a store or a registry."""

    no_store: ClassVar[dict[str, str]] = {"Cache-Control": "no-store"}

    @get("/live")
    async def live(self) -> Response[bytes]:
        """Respond while the process is up."""
        return _json(Live(True), self.no_store)

    @get("/ready")
    async def ready(
        self,
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        probe: NamedDependency[StoreProbe],
        stopping: NamedDependency[threading.Event],
        challenger: NamedDependency[Challenger | None],
    ) -> Response[Any]:
        """Return 200 while the model and the feature store are usable and the process is not stopping."""
        return readiness_response(*readiness(settings, slot, probe, stopping, challenger))

    @get(["/ping", "/health"])
    async def ping(
        self,
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        probe: NamedDependency[StoreProbe],
        stopping: NamedDependency[threading.Event],
    ) -> Response[bytes]:
        """Return 200 if `/ready` does, otherwise 404: statuses and body are those of MLflow's scoring server."""
        _, problem = readiness(settings, slot, probe, stopping)
        status = 200 if problem is None else 404
        return Response(b"\n", status_code=status, media_type=MediaType.JSON, headers=self.no_store)

    @get("/version")
    async def version(self, slot: NamedDependency[ModelSlot]) -> Response[bytes]:
        """Return the model version, feature service and feature definitions that serve now, and MLflow's version."""
        served = slot.current()
        mlflow = _version_of("mlflow")
        body = Version(model_of(served), served.scorer.features.service, served.target.definitions, mlflow)
        return _json(body, {**self.no_store, "X-Model-Version": header_value(str(served.scorer.version)).decode()})

    @get("/metrics")
    async def metrics(self, metrics: NamedDependency[Metrics]) -> Response[bytes]:
        """Return the metrics for Prometheus."""
        plain = "text/plain; version=0.0.4"  # Litestar adds the charset
        return Response(generate_latest(metrics.registry), media_type=plain, headers=self.no_store)


class Description(Controller):
    """The API's description, human- and machine-readable."""

    @get("/", media_type=MediaType.HTML)
    async def page(self, index: NamedDependency[bytes]) -> Response[bytes]:
        """Return Swagger UI."""
        return Response(index, media_type=MediaType.HTML, headers={"Content-Security-Policy": PAGE_POLICY})

    @get("/openapi.json")
    async def openapi(
        self,
        request: Request[Any, Any, Any],
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        keys: NamedDependency[Keys],
        formats: NamedDependency[Mapping[str, Any]],  # Litestar can't check a protocol
    ) -> Response[bytes]:
        """Return the OpenAPI document of the current model. Its example has real entity keys for callers with a key."""
        admitted = keys.admit(headers_of(request.scope).get(b"authorization"))
        document = describe(settings, formats, slot.served, keys_required=keys.required, real_example=admitted)
        return _json(document, {"Cache-Control": "no-store"})


def _json(body: Any, headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type=MediaType.JSON, headers=headers)
