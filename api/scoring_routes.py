"""What the model is asked for: POST /inference and POST /scores.

Litestar makes a task group for the dependencies of each request, a copy of the handler for each guard, and parses all
headers, which together took longer than everything else here (2.25). So these two handlers are functions over the parts
that they need, and read and answer by themselves.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler

from api.access import Keys
from api.answers import inference_answer, scores_answer
from api.bodies import JsonAnswer, header, read_body
from api.errors import NotJson
from api.model_slot import Served
from api.note import Note
from api.problems import header_text
from api.request_form import EntityRequest
from api.request_scoring import RequestScoring
from api.stages import RowScores
from scoring.settings import MissingFeaturesPolicy, Settings

AnyRequest = Request[Any, Any, Any]
Answer = Callable[[Served, EntityRequest, RowScores, MissingFeaturesPolicy], dict[str, Any]]

JSON = "application/json"


def scoring_routes(settings: Settings, keys: Keys, scoring: RequestScoring) -> list[HTTPRouteHandler]:
    """The two routes, over what decides who may ask and what scores."""

    async def answer(request: AnyRequest, make_answer: Answer) -> JsonAnswer:
        # Before a body is read: who may not ask, or can't be answered now, sends it for nothing.
        if keys.needed:
            keys.check(header(request.scope, b"authorization"))
        scoring.check_room()
        if not _is_json(header(request.scope, b"content-type")):
            raise NotJson
        body = await read_body(request.scope, request.receive, settings.max_body_bytes, settings.body_timeout_s)
        scored = await scoring.score(body, Note.of(request.scope["state"]))
        content = make_answer(scored.served, scored.entities, scored.scores, settings.missing_features)
        headers = {
            b"x-request-id": header_text(scored.entities.request_id),
            b"x-model-version": scored.served.version_header,
        }
        return JsonAnswer(msgspec.json.encode(content), headers)

    @post("/inference", status_code=200)
    async def inference(request: AnyRequest) -> JsonAnswer:
        """The best of the entities asked for."""
        return await answer(request, inference_answer)

    @post("/scores", status_code=200)
    async def scores(request: AnyRequest) -> JsonAnswer:
        """One score an entity."""
        return await answer(request, scores_answer)

    return [inference, scores]


def _is_json(content_type: str | None) -> bool:
    return content_type is not None and content_type.partition(";")[0].strip().lower() == JSON
