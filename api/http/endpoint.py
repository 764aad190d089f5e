"""POST /inference and POST /scores, from the request to the answer: every method and every error of the two paths.

They don't go through Litestar, which makes a task group for a handler's dependencies, a copy of the handler for each
guard, and request and response objects that parse all headers. Its router and its layers of exception handlers take a
sixth of what remains without these (litestar 2.25, docs/adr/009).
"""

import string
import time
from collections.abc import Callable
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from api.errors import (
    BodyEncoded,
    DeadlineExceeded,
    InvalidHost,
    MethodNotAllowed,
    NotJson,
    Overloaded,
)
from api.http.access import Keys
from api.http.answers import inference_answer, scores_answer
from api.http.messages import BodyReader, Headers, Response, header_text, headers_of, send_response
from api.http.problems import problem_for
from api.inference.batcher import MicroBatcher
from api.inference.micro_batch import PendingRequest
from api.model.model_slot import ModelSlot, Served
from api.model.request_schema import EntityRequest
from api.model.scorer import RowScores
from api.model.store_health import NO_ANSWER, Breaker
from api.telemetry.metrics import Metrics
from api.telemetry.request_context import RequestContext
from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.settings import MissingFeaturesPolicy, Settings

MakeAnswer = Callable[[Served, EntityRequest, RowScores, MissingFeaturesPolicy], dict[str, Any]]

ANSWERS: dict[str, MakeAnswer] = {"/inference": inference_answer, "/scores": scores_answer}
METHODS = "POST, OPTIONS"
JSON = "application/json"
# What a Host may consist of, as in Litestar's own check (2.25).
HOST_CHARACTERS = f"{string.ascii_letters}{string.digits}!$&'()*+,;=-._~:[]@%".encode()


class ScoringEndpoint:
    """ASGI application for the two paths, in front of another one for everything else."""

    def __init__(
        self,
        other: ASGIApp,
        settings: Settings,
        keys: Keys,
        slot: ModelSlot,
        breaker: Breaker,
        batcher: MicroBatcher,
        metrics: Metrics,
    ) -> None:
        self._other = other
        self._keys = keys
        self._slot = slot
        self._breaker = breaker
        self._batcher = batcher
        self._metrics = metrics
        self._policy = settings.missing_features
        self._bodies = BodyReader(settings.max_body_bytes, settings.body_timeout_s)
        self._deadline_s = settings.deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path = scope["path"]
        if path not in ANSWERS:
            path = f"/{path.strip('/')}"  # as Litestar does
        if scope["type"] != ScopeType.HTTP or path not in ANSWERS:
            await self._other(scope, receive, send)
            return
        scope["path_template"] = path
        try:
            response = await self._respond(scope, receive, ANSWERS[path])
        except Exception as error:
            response = problem_for(error, scope)
        await send_response(send, response)

    async def _respond(self, scope: HTTPScope, receive: Receive, make_answer: MakeAnswer) -> Response:
        headers = headers_of(scope)
        if headers.get(b"host", b"").translate(None, HOST_CHARACTERS):
            raise InvalidHost
        if scope["method"] == "OPTIONS":
            return Response(204, {"allow": METHODS}, b"")
        if scope["method"] != "POST":
            raise MethodNotAllowed(METHODS)
        # Before the body is read: a client without a key, or one that can't be answered now, need not send it.
        self._keys.check(headers.get(b"authorization"))
        if self._batcher.full:
            raise Overloaded
        if _value(headers, b"content-type").partition(";")[0].rstrip() != JSON:
            raise NotJson
        if _value(headers, b"content-encoding") not in {"", "identity"}:
            raise BodyEncoded
        body = await self._bodies.read(headers, receive)
        context = RequestContext.of(scope)
        served, request, scores = await self._score(body, context)
        return Response(
            200,
            {
                "content-type": JSON,
                "x-request-id": header_text(request.request_id),
                "x-model-version": header_text(str(served.scorer.version)),
            },
            msgspec.json.encode(make_answer(served, request, scores, self._policy)),
        )

    async def _score(self, body: bytes, context: RequestContext) -> tuple[Served, EntityRequest, RowScores]:
        """What serves, the request in `body` and its scores; `context` keeps what is known of it.

        Raises:
            RequestError, EntityRowsError, FeaturesRejected: this request can't be answered.
            Unavailable, FeatureStoreError: not now.
            PredictionFailed: the model failed.
        """
        served = self._slot.current()  # once: a swap while the request waits does not concern it
        context.model = str(served.scorer.version)
        request = served.form.decode(body)
        context.request_id = request.request_id
        self._breaker.check()
        pending = context.pending = PendingRequest(served.scorer, request.entity_rows, request.rows)
        try:
            scores = await self._batcher.score(pending, self._deadline_s)
        except TimeoutError:
            if pending.in_store:
                self._blame_store(pending, NO_ANSWER)
            raise DeadlineExceeded(self._deadline_s) from None
        except UnusableFeature:
            raise
        except FeatureStoreError as error:
            self._blame_store(pending, error.public, str(error))
            raise
        finally:
            self._metrics.worked_on(pending, time.time())
        self._breaker.answered()
        self._metrics.scored(scores)
        return served, request, scores

    def _blame_store(self, pending: PendingRequest, problem: str, reason: str | None = None) -> None:
        """Report a failure of the store: once per batch, though several requests end with it."""
        if pending.batch is not None and not pending.batch.blamed:
            pending.batch.blamed = True
            self._breaker.failed(problem, reason)


def _value(headers: Headers, name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip().lower()
