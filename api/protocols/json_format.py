"""The JSON of POST /inference and POST /scores."""

from collections.abc import Callable
from typing import Any

import msgspec

from api.errors import NotJson
from api.model.model_slot import Served
from api.model.request_schema import EntityRequest
from api.model.request_types import RequestId
from api.model.scorer import RowScores
from api.protocols.answers import AnswerSchema, answer_schema
from api.protocols.operation import BODY_PROBLEMS, Bodies, Operation
from api.protocols.problems import Problem, problem_response
from api.protocols.response import JSON, JSON_HEADER, Headers, Response, media_type
from api.protocols.scoring import Scoring
from api.protocols.wire_format import Call
from scoring.settings import Settings

MakeAnswer = Callable[[AnswerSchema, Served, EntityRequest, RowScores], msgspec.Struct]


class JsonFormat:
    """A `WireFormat` for JSON objects."""

    def __init__(self, make_answer: MakeAnswer, settings: Settings) -> None:
        """Create the format of the path whose bodies `make_answer` returns."""
        self._make_answer = make_answer
        self._policy = settings.missing_features
        self._max_body_bytes = settings.max_body_bytes
        self._max_entities = settings.max_entities

    def check_headers(self, headers: Headers) -> int:
        """See `WireFormat.check_headers`."""
        if media_type(headers) != JSON:
            raise NotJson
        return self._max_body_bytes

    async def respond(self, call: Call, scoring: Scoring) -> Response:
        """See `WireFormat.respond`."""
        served = scoring.current(call.context)
        request = served.schema.decode(call.body)
        scores = await scoring.score(served, request, call.context)
        answers = answer_schema(served.schema, self._policy, served.scorer.outputs)
        answer = self._make_answer(answers, served, request, scores)
        return Response(200, [JSON_HEADER], msgspec.json.encode(answer))

    def problem(self, problem: Problem, headers: list[tuple[bytes, bytes]]) -> Response:
        """See `WireFormat.problem`."""
        return problem_response(problem, headers)

    def operation(self, path: str, bodies: Bodies) -> Operation:
        """See `WireFormat.operation`."""
        summary, answer = {
            "/inference": ("The best of the requested entities", bodies.answers.inference_answer),
            "/scores": ("One score per entity, in request order", bodies.answers.scores_answer),
        }[path]
        request = {"application/json": self._request(bodies)}
        scored = {"application/json": {"schema": bodies.schema(answer)}}
        return Operation(path.strip("/"), "scoring", summary, scored, bodies.problem, BODY_PROBLEMS, request)

    def _request(self, bodies: Bodies) -> dict[str, Any]:
        if bodies.request_schema is not None:
            return {"schema": bodies.schema(bodies.request_schema.body_type), "example": bodies.example}
        schema = {
            "type": "object",
            "properties": {"request_id": bodies.schema(RequestId)},
            "required": ["request_id"],
            "additionalProperties": {"type": "array", "minItems": 1, "maxItems": self._max_entities},
            "description": "No model serves yet. Its join keys will determine the second member: `entity_rows`, a list "
            "of objects with keys and request inputs, or `<key>s`, a list of keys.",
        }
        return {"schema": schema}
