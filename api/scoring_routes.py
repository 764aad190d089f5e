"""What the model is asked for: POST /inference and POST /scores.

Litestar makes a task group for the dependencies of each request, a copy of the handler for each guard, parses all
headers and builds a request and a response, which together took longer than everything else here (2.25). So these two
are ASGI handlers over the parts that they need, which read and answer by themselves; Litestar routes to them, and its
exception handlers answer for what they raise.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from litestar import asgi
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import HTTPScope, Receive, Send

from api.access import Keys
from api.answers import inference_answer, scores_answer
from api.bodies import header, read_body, send_empty, send_json
from api.errors import BodyEncoded, NotJson
from api.model_slot import Served
from api.note import Note
from api.problems import header_text
from api.request_form import EntityRequest
from api.request_scoring import RequestScoring
from api.stages import RowScores
from scoring.settings import MissingFeaturesPolicy, Settings

Answer = Callable[[Served, EntityRequest, RowScores, MissingFeaturesPolicy], dict[str, Any]]

METHODS = "POST, OPTIONS"
JSON = "application/json"


def scoring_routes(settings: Settings, keys: Keys, scoring: RequestScoring) -> list[ASGIRouteHandler]:
    """The two routes, over what decides who may ask and what scores."""

    async def answer(scope: HTTPScope, receive: Receive, send: Send, make_answer: Answer) -> None:
        if scope["method"] != "POST":
            await _other_method(scope, send)
            return
        # Before a body is read: who may not ask, or can't be answered now, sends it for nothing.
        if keys.needed:
            keys.check(header(scope, b"authorization"))
        scoring.check_room()
        if not _is_json(header(scope, b"content-type")):
            raise NotJson
        if not _is_plain(header(scope, b"content-encoding")):
            raise BodyEncoded
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout_s)
        scored = await scoring.score(body, Note.of(scope["state"]))
        content = make_answer(scored.served, scored.entities, scored.scores, settings.missing_features)
        headers = [
            (b"x-request-id", header_text(scored.entities.request_id).encode("ascii")),
            (b"x-model-version", scored.served.version_header.encode("ascii")),
        ]
        await send_json(send, msgspec.json.encode(content), headers)

    @asgi("/inference", copy_scope=False)
    async def inference(scope: HTTPScope, receive: Receive, send: Send) -> None:
        """The best of the entities asked for."""
        await answer(scope, receive, send, inference_answer)

    @asgi("/scores", copy_scope=False)
    async def scores(scope: HTTPScope, receive: Receive, send: Send) -> None:
        """One score an entity."""
        await answer(scope, receive, send, scores_answer)

    return [inference, scores]


async def _other_method(scope: HTTPScope, send: Send) -> None:
    if scope["method"] != "OPTIONS":
        raise MethodNotAllowedException(headers={"Allow": METHODS})
    await send_empty(send, [(b"allow", METHODS.encode("ascii"))])


def _is_json(content_type: str | None) -> bool:
    return content_type is not None and content_type.partition(";")[0].strip().lower() == JSON


def _is_plain(content_encoding: str | None) -> bool:
    return content_encoding is None or content_encoding.strip().lower() in {"", "identity"}
