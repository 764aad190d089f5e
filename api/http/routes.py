"""The addresses that tell about the API: health, metrics, what serves, and how it is asked."""

import threading
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from litestar import Controller, MediaType, Response, get
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from prometheus_client.exposition import generate_latest

from api.http.access import Keys
from api.http.answers import model_answer
from api.http.messages import header_text
from api.http.openapi import describe
from api.http.readiness import readiness, readiness_response
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from api.telemetry.metrics import Metrics
from scoring.settings import Settings

STATIC = Path(__file__).parent / "static"
# The page works without the internet, and this holds it to that.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


PAGE_FILES = frozenset(str(file.relative_to(STATIC)) for file in STATIC.rglob("*"))


async def page_file(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Litestar's guard of the page's files: it asks the disk for any name, and some names are an error there (2.25).

    Raises:
        NotFoundException: the page has no such file.
    """
    if str(connection.path_params["file_path"]).strip("/") not in PAGE_FILES:
        raise NotFoundException


class Health(Controller):
    """What an operator or a load balancer asks for. Answered at once: none of it waits for a store or a registry."""

    no_store: ClassVar[dict[str, str]] = {"Cache-Control": "no-store"}

    @get("/live")
    async def live(self) -> Response[bytes]:
        """The process is up."""
        return _json({"live": True}, self.no_store)

    @get("/ready")
    async def ready(
        self,
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        probe: NamedDependency[StoreProbe],
        stopping: NamedDependency[threading.Event],
    ) -> Response[Any]:
        """Model and feature store are usable, and the process was not told to stop."""
        return readiness_response(readiness(settings, slot, probe, stopping))

    @get("/version")
    async def version(self, slot: NamedDependency[ModelSlot]) -> Response[bytes]:
        """What serves now."""
        served = slot.current()
        body = {
            "model": model_answer(served),
            "feature_service": served.scorer.features.service,
            "definitions": served.target.definitions,
        }
        return _json(body, {**self.no_store, "X-Model-Version": header_text(str(served.scorer.version))})

    @get("/metrics")
    async def metrics(self, metrics: NamedDependency[Metrics]) -> Response[bytes]:
        """What Prometheus scrapes."""
        plain = "text/plain; version=0.0.4"  # Litestar adds the charset
        return Response(generate_latest(metrics.registry), media_type=plain, headers=self.no_store)


class Description(Controller):
    """The API's description, for people and for programs."""

    @get("/", media_type=MediaType.HTML)
    async def page(self, index: NamedDependency[bytes]) -> Response[bytes]:
        """Swagger UI."""
        return Response(index, media_type=MediaType.HTML, headers={"Content-Security-Policy": PAGE_POLICY})

    @get("/openapi.json")
    async def openapi(
        self, settings: NamedDependency[Settings], slot: NamedDependency[ModelSlot], keys: NamedDependency[Keys]
    ) -> Response[bytes]:
        """OpenAPI document of what serves now."""
        form = slot.served.form if slot.served else None
        return _json(describe(settings, form, keys_needed=keys.needed), {"Cache-Control": "no-store"})


def _json(body: dict[str, Any], headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type=MediaType.JSON, headers=headers)
