"""What the model is asked for: POST /inference and POST /scores.

Litestar makes a task group for the dependencies of each request, a copy of the handler for each guard, parses all
headers and builds a request and a response, which together took longer than everything else here (2.25). So these two
read and answer by themselves, over the parts that they need.

Its router and its layers of exception handlers take a sixth of what is left. So a plain request for a score is answered
before it reaches them (`DirectRoutes`). Everything else goes Litestar's way: other methods and spellings of a path, and
whatever leads to an error, for which its exception handlers answer.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from litestar import asgi
from litestar.enums import ScopeType
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from api.errors import BodyEncoded, NotJson
from api.http.access import Keys
from api.http.answers import inference_answer, scores_answer
from api.http.bodies import BodyReader, Headers, headers_of, send_empty, send_json
from api.http.request_scoring import RequestScoring
from api.inference.stages import RowScores
from api.model.header_text import header_text
from api.model.model_slot import Served
from api.model.request_schema import EntityRequest
from api.telemetry.request_context import RequestContext
from scoring.settings import MissingFeaturesPolicy, Settings

MakeAnswer = Callable[[Served, EntityRequest, RowScores, MissingFeaturesPolicy], dict[str, Any]]

METHODS = "POST, OPTIONS"
JSON, JSON_EXACTLY = "application/json", b"application/json"
ANSWERS: dict[str, MakeAnswer] = {"/inference": inference_answer, "/scores": scores_answer}
FAILED = "serving_failed"
"""Where a request's ASGI state has the error that a direct answer led to."""
# Litestar refuses some hosts (2.25); it sees to all but the most usual.
USUAL_HOST = re.compile(rb"[A-Za-z0-9.:\[\]_-]*").fullmatch


class Answer(NamedTuple):
    """What goes back with status 200."""

    body: bytes
    headers: list[tuple[bytes, bytes]]


Answering = Callable[[Headers, HTTPScope, Receive], Awaitable[Answer]]


def answering(settings: Settings, keys: Keys, scoring: RequestScoring) -> dict[str, Answering]:
    """Path → what answers a POST to it, over what decides who may ask and what scores."""
    bodies = BodyReader(settings.max_body_bytes, settings.body_timeout_s)

    def over(make_answer: MakeAnswer) -> Answering:
        async def answer(headers: Headers, scope: HTTPScope, receive: Receive) -> Answer:
            # Before a body is read: who may not ask, or can't be answered now, sends it for nothing.
            if keys.needed:
                keys.check(headers.get(b"authorization", b"").decode("latin-1"))
            scoring.check_room()
            if not _is_json(headers.get(b"content-type")):
                raise NotJson
            if not _is_plain(headers.get(b"content-encoding")):
                raise BodyEncoded
            body = await bodies.read(headers, receive)
            scored = await scoring.score(body, RequestContext.of(scope["state"]))
            content = make_answer(scored.served, scored.entities, scored.scores, settings.missing_features)
            described = [
                (b"x-request-id", header_text(scored.entities.request_id).encode("ascii")),
                (b"x-model-version", scored.served.version_header.encode("ascii")),
            ]
            return Answer(msgspec.json.encode(content), described)

        return answer

    return {path: over(make_answer) for path, make_answer in ANSWERS.items()}


class DirectRoutes:
    """Answers plain requests for scores by itself, and leaves the others to Litestar."""

    def __init__(self, app: ASGIApp, answers: Mapping[str, Answering]) -> None:
        """Args: Litestar's own way, and path → what answers."""
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        answer = self._answers.get(scope["path"])
        headers = headers_of(scope) if answer is not None else {}
        if scope["type"] != ScopeType.HTTP or answer is None or not _is_plain_post(scope, headers):
            await self._app(scope, receive, send)
            return
        try:
            body, described = await answer(headers, scope, receive)
        except Exception as error:
            scope["state"][FAILED] = error
            await self._app(scope, receive, send)
            return
        await send_json(send, body, described)


def scoring_routes(answers: Mapping[str, Answering]) -> list[ASGIRouteHandler]:
    """Litestar's handlers for these paths: for what was not answered directly."""

    def handler(path: str, answer: Answering) -> ASGIRouteHandler:
        @asgi(path, copy_scope=False)
        async def handle(scope: HTTPScope, receive: Receive, send: Send) -> None:
            failed = scope["state"].pop(FAILED, None)
            if failed is not None:
                raise failed
            if scope["method"] != "POST":
                await _other_method(scope, send)
                return
            await send_json(send, *await answer(headers_of(scope), scope, receive))

        return handle

    return [handler(path, answer) for path, answer in answers.items()]


def _is_plain_post(scope: HTTPScope, headers: Headers) -> bool:
    return scope["method"] == "POST" and USUAL_HOST(headers.get(b"host", b"")) is not None


async def _other_method(scope: HTTPScope, send: Send) -> None:
    if scope["method"] != "OPTIONS":
        raise MethodNotAllowedException(headers={"Allow": METHODS})
    await send_empty(send, [(b"allow", METHODS.encode("ascii"))])


def _is_json(content_type: bytes | None) -> bool:
    if content_type == JSON_EXACTLY:
        return True
    return content_type is not None and content_type.decode("latin-1").partition(";")[0].strip().lower() == JSON


def _is_plain(content_encoding: bytes | None) -> bool:
    return content_encoding is None or content_encoding.decode("latin-1").strip().lower() in {"", "identity"}
