"""The addresses of the API. Handlers read the request, hand it to the others and shape the response."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from litestar import Controller, MediaType, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException, NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from api.access import Keys
from api.answers import inference_answer, model_answer, scores_answer
from api.errors import BodyTooSlow, ClientLeft, NotJson
from api.metrics import Metrics
from api.model_slot import ModelSlot, Served
from api.note import Note
from api.openapi import describe
from api.problems import header_text
from api.readiness import readiness, readiness_response
from api.request_form import EntityRequest
from api.request_scoring import RequestScoring
from api.stopping import Stopping
from api.store_probe import StoreProbe
from scoring.predict import Scores
from scoring.settings import MissingFeaturesPolicy, Settings

AnyRequest = Request[Any, Any, Any]
Answer = Callable[[Served, EntityRequest, Scores, MissingFeaturesPolicy], dict[str, Any]]

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


async def may_ask(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Litestar's guard of the scoring routes: runs before a body is read. (Async: another kind costs a thread's hop.)

    Raises:
        KeyNeeded: the caller may not.
        Overloaded: nobody may, now.
    """
    state = connection.app.state
    state.caller_keys.check(connection.headers.get("authorization"))
    state.scoring.check_room()


class Scoring(Controller):
    """What the model is asked for."""

    guards: ClassVar[list[Guard]] = [may_ask]  # type: ignore[misc]  # Litestar declares it as an instance's

    @post("/inference", status_code=200)
    async def inference(
        self, request: AnyRequest, settings: NamedDependency[Settings], scoring: NamedDependency[RequestScoring]
    ) -> Response[bytes]:
        """The best of the entities asked for."""
        return await _answer(request, settings, scoring, inference_answer)

    @post("/scores", status_code=200)
    async def scores(
        self, request: AnyRequest, settings: NamedDependency[Settings], scoring: NamedDependency[RequestScoring]
    ) -> Response[bytes]:
        """One score an entity."""
        return await _answer(request, settings, scoring, scores_answer)


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
        stopping: NamedDependency[Stopping],
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
        return _json(body, {**self.no_store, **_version_header(served)})

    @get("/metrics")
    async def metrics(self, metrics: NamedDependency[Metrics]) -> Response[bytes]:
        """What Prometheus scrapes."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4, headers=self.no_store)


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


async def _answer(
    request: AnyRequest, settings: Settings, scoring: RequestScoring, make_answer: Answer
) -> Response[bytes]:
    if request.content_type[0] != "application/json":
        raise NotJson
    body = await read_body(request, settings.body_timeout_s)
    scored = await scoring.score(body, Note.of(request.scope["state"]))
    answer = make_answer(scored.served, scored.entities, scored.scores, settings.missing_features)
    headers = {"X-Request-Id": header_text(scored.entities.request_id), **_version_header(scored.served)}
    return _json(answer, headers)


async def read_body(request: AnyRequest, limit_s: float) -> bytes:
    """The request's body.

    Raises:
        BodyTooSlow: it did not arrive in time.
        ClientLeft: nor will it.
    """
    # Litestar holds the body to request_max_body_size as it arrives, and calls a client that left a server's fault.
    try:
        async with asyncio.timeout(limit_s):
            return b"".join([chunk async for chunk in request.stream()])
    except TimeoutError:
        raise BodyTooSlow(limit_s) from None
    except InternalServerException:
        raise ClientLeft from None


def _version_header(served: Served) -> dict[str, str]:
    return {"X-Model-Version": header_text(str(served.scorer.version))}


def _json(body: dict[str, Any], headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type=MediaType.JSON, headers=headers)
