"""The ASGI endpoint of POST /inference and POST /scores, including other methods of the two paths and all errors.

They bypass Litestar, which creates a task group for a handler's dependencies, a copy of the handler for each guard, and
request and response objects that parse all headers. Its router and its layers of exception handlers account for a sixth
of the remaining time (litestar 2.25, docs/adr/009).
"""

import functools
import string
import time
from collections.abc import Callable

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
from api.http.answers import AnswerForm, answer_form
from api.http.messages import BodyReader, Response, header_value, headers_of, send_response
from api.http.problems import problem_for
from api.inference.batcher import MicroBatcher
from api.inference.micro_batch import PendingRequest
from api.model.model_slot import ModelSlot, Served
from api.model.request_schema import EntityRequest
from api.model.scorer import RowScores
from api.model.store_health import NO_ANSWER, Breaker
from api.telemetry.metrics import Metrics
from api.telemetry.request_context import RequestContext
from scoring.errors import EntityRowsError, FeatureStoreError, UnusableFeature
from scoring.settings import Settings

MakeAnswer = Callable[[AnswerForm, Served, EntityRequest, RowScores], msgspec.Struct]

ANSWERS: dict[str, MakeAnswer] = {"/inference": AnswerForm.inference, "/scores": AnswerForm.scores}
METHODS = "POST, OPTIONS"
JSON = b"application/json"
JSON_HEADER = (b"content-type", JSON)
# The characters of a valid Host, as in Litestar's own check (2.25).
HOST_CHARACTERS = f"{string.ascii_letters}{string.digits}!$&'()*+,;=-._~:[]@%".encode()


@functools.lru_cache(maxsize=2)
def _version_header(model: str) -> tuple[bytes, bytes]:
    return b"x-model-version", header_value(model)


class ScoringEndpoint:
    """ASGI application for the two paths that delegates all other paths to another application."""

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
            return Response(204, [(b"allow", METHODS.encode())], b"")
        if scope["method"] != "POST":
            raise MethodNotAllowed(METHODS)
        # Check these before reading the body, so that a client that is refused need not send it.
        self._keys.check(headers.get(b"authorization"))
        if self._batcher.full:
            raise Overloaded
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON:
            raise NotJson
        if headers.get(b"content-encoding", b"").strip().lower() not in {b"", b"identity"}:
            raise BodyEncoded
        body = await self._bodies.read(scope, headers, receive)
        context = RequestContext.of(scope)
        served, request, scores = await self._score(body, context)
        answer = make_answer(answer_form(served.form, self._policy, served.scorer.outputs), served, request, scores)
        id_header = (b"x-request-id", header_value(request.request_id))
        return Response(200, [JSON_HEADER, id_header, _version_header(context.model)], msgspec.json.encode(answer))

    async def _score(self, body: bytes, context: RequestContext) -> tuple[Served, EntityRequest, RowScores]:
        """Score the request in `body` with the current version, and record in `context` what is known about it.

        Raises:
            RequestError, FeaturesRejected: the request can't be answered.
            Unavailable, FeatureStoreError: it can't be answered now.
            PredictionFailed: the model failed.
        """
        served = self._slot.current()  # once: a swap while the request waits has no effect on it
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
        except EntityRowsError as error:
            raise served.form.invalid(str(error).removesuffix(".")) from None
        except UnusableFeature:
            raise
        except FeatureStoreError as error:
            self._blame_store(pending, error.public, str(error))
            raise
        finally:
            self._metrics.worked_on(pending, time.time())
        if pending.batch is not None and not pending.batch.answered:
            pending.batch.answered = True
            self._breaker.answered()
        self._metrics.scored(scores)
        return served, request, scores

    def _blame_store(self, pending: PendingRequest, problem: str, reason: str | None = None) -> None:
        """Report a failure of the store: once per batch, however many requests it fails."""
        if pending.batch is not None and not pending.batch.blamed:
            pending.batch.blamed = True
            self._breaker.failed(problem, reason)
