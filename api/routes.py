"""The addresses of the API. Handlers read the request, hand it to the others and shape the response."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from litestar import Controller, MediaType, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException

from api.answers import inference_answer, model_answer, scores_answer
from api.errors import ClientLeft, DeadlineExceeded, NotJson
from api.model_slot import ModelSlot, Served
from api.openapi import describe
from api.problems import header_text
from api.readiness import readiness, readiness_response
from api.request_form import EntityRequest
from api.store_probe import StoreProbe
from api.workers import Workers
from scoring.predict import Scores
from scoring.settings import MissingFeaturesPolicy, Settings

AnyRequest = Request[Any, Any, Any]
Answer = Callable[[Served, EntityRequest, Scores, MissingFeaturesPolicy], dict[str, Any]]

STATIC = Path(__file__).parent / "static"
# The page works without the internet, and this holds it to that.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


class Scoring(Controller):
    """What the model is asked for."""

    @post("/inference", status_code=200)
    async def inference(
        self,
        request: AnyRequest,
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        workers: NamedDependency[Workers],
    ) -> Response[bytes]:
        """The best of the entities asked for."""
        return await _answer(request, settings, slot, workers, inference_answer)

    @post("/scores", status_code=200)
    async def scores(
        self,
        request: AnyRequest,
        settings: NamedDependency[Settings],
        slot: NamedDependency[ModelSlot],
        workers: NamedDependency[Workers],
    ) -> Response[bytes]:
        """One score an entity."""
        return await _answer(request, settings, slot, workers, scores_answer)


class Health(Controller):
    """What an operator or a load balancer asks for. Answered at once: none of it waits for a store or a registry."""

    no_store: ClassVar[dict[str, str]] = {"Cache-Control": "no-store"}

    @get("/live")
    async def live(self) -> Response[bytes]:
        """The process is up."""
        return _json({"live": True}, self.no_store)

    @get("/ready")
    async def ready(
        self, settings: NamedDependency[Settings], slot: NamedDependency[ModelSlot], probe: NamedDependency[StoreProbe]
    ) -> Response[Any]:
        """Model and feature store are usable."""
        return readiness_response(readiness(settings, slot, probe))

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


class Description(Controller):
    """The API's description, for people and for programs."""

    @get("/", media_type=MediaType.HTML)
    async def page(self, index: NamedDependency[bytes]) -> Response[bytes]:
        """Swagger UI."""
        return Response(index, media_type=MediaType.HTML, headers={"Content-Security-Policy": PAGE_POLICY})

    @get("/openapi.json")
    async def openapi(self, settings: NamedDependency[Settings], slot: NamedDependency[ModelSlot]) -> Response[bytes]:
        """OpenAPI document of what serves now."""
        form = slot.served.form if slot.served else None
        return _json(describe(settings, form), {"Cache-Control": "no-store"})


async def _answer(
    request: AnyRequest, settings: Settings, slot: ModelSlot, workers: Workers, make_answer: Answer
) -> Response[bytes]:
    if request.content_type[0] != "application/json":
        raise NotJson
    body = b"".join([chunk async for chunk in _read(request)])
    try:
        async with asyncio.timeout(settings.deadline_s):
            # Taken once: a swap meanwhile changes nothing for this request.
            served = slot.current()
            entities = served.form.decode(body)
            request.state.request_id = entities.request_id
            scores = await workers.run(lambda: served.scorer.score(entities.entity_rows, datetime.now(UTC)))
    except TimeoutError:
        raise DeadlineExceeded(settings.deadline_s) from None
    answer = make_answer(served, entities, scores, settings.missing_features)
    return _json(answer, {"X-Request-Id": header_text(entities.request_id), **_version_header(served)})


async def _read(request: AnyRequest) -> AsyncIterator[bytes]:
    # Litestar holds the body to request_max_body_size as it arrives, and calls a client that left a server's fault.
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException:
        raise ClientLeft from None


def _version_header(served: Served) -> dict[str, str]:
    return {"X-Model-Version": header_text(str(served.scorer.version))}


def _json(body: dict[str, Any], headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), media_type=MediaType.JSON, headers=headers)
