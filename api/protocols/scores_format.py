"""POST /scores in JSON, NDJSON, CSV, Parquet and Arrow streams."""

from collections.abc import Callable

from api.errors import NotAcceptable, UnsupportedMediaType
from api.model.request_schema import EntityRequest, RequestSchema
from api.protocols.answers import AnswerSchema
from api.protocols.bulk_scores import BulkScores
from api.protocols.csv_rows import decode_csv
from api.protocols.json_format import JsonFormat
from api.protocols.operation import Bodies, Operation
from api.protocols.response import CSV, JSON, Headers, Response, media_type, negotiate
from api.protocols.score_bodies import answer_in
from api.protocols.scoring import Scoring
from api.protocols.tables import ARROW, PARQUET, TABLE_NAMES
from api.protocols.wire_format import Call, request_id_of
from scoring.settings import Settings

NDJSON = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl")
TEXTS: dict[bytes, Callable[[RequestSchema, str, bytes, int, str], EntityRequest]] = {
    CSV: decode_csv,
    **dict.fromkeys(NDJSON, RequestSchema.decode_lines),
}
MEDIA_TYPES = (JSON, *NDJSON[:1], CSV, ARROW, PARQUET, *NDJSON[1:])
NAMES = [media.decode() for media in MEDIA_TYPES]
ANY = b"*/*"


class ScoresFormat(JsonFormat):
    """The `WireFormat` of /scores."""

    def __init__(self, settings: Settings) -> None:
        """Create the format."""
        super().__init__(AnswerSchema.scores, settings)
        self._bulk = BulkScores(settings)
        self._more = "more"
        if self._bulk.max_rows > settings.max_entities:
            self._more += f" (an Arrow stream or a Parquet file may have {self._bulk.max_rows})"

    def check_headers(self, headers: Headers) -> int:
        """See `WireFormat.check_headers`."""
        if _is_plain_json(headers):
            return self._max_body_bytes
        media = media_type(headers)
        if media not in MEDIA_TYPES:
            raise UnsupportedMediaType(NAMES)
        _accepted(headers, media)
        length = headers.get(b"content-length", b"")
        if media not in TABLE_NAMES or (length.isdigit() and int(length) <= self._max_body_bytes):
            return self._max_body_bytes
        return self._bulk.max_bytes

    async def respond(self, call: Call, scoring: Scoring) -> Response:
        """See `WireFormat.respond`."""
        if _is_plain_json(call.headers):
            return await super().respond(call, scoring)
        sent = media_type(call.headers)
        accepted = _accepted(call.headers, sent)
        if sent == accepted == JSON:
            return await super().respond(call, scoring)
        served = scoring.current(call.context)
        if sent == JSON:
            request = served.schema.decode(call.body)
        else:
            request_id = call.context.request_id = request_id_of(call.headers)
            if sent in TABLE_NAMES:
                answer = answer_in(accepted, served, self._policy, request_id)
                return _response(accepted, await self._bulk.respond(sent, served, request_id, answer, call, scoring))
            request = TEXTS[sent](served.schema, request_id, call.body, self._max_entities, self._more)
        answer = answer_in(accepted, served, self._policy, request.request_id)
        answer.add(request, await scoring.score(served, request, call.context))
        return _response(accepted, answer.finish())

    def operation(self, path: str, bodies: Bodies) -> Operation:
        """See `WireFormat.operation`."""
        described = super().operation(path, bodies)
        other = {name: {"schema": {"type": "string", "format": "binary"}} for name in NAMES[1:]}
        statuses = tuple(sorted({*described.statuses, 406}))
        return described._replace(
            request=(described.request or {}) | other, answer=described.answer | other, statuses=statuses
        )


def _is_plain_json(headers: Headers) -> bool:
    """Return whether headers ask for JSON in return for JSON, as most clients write them: without any parsing."""
    return headers.get(b"content-type") == JSON and headers.get(b"accept", ANY) == ANY


def _accepted(headers: Headers, sent: bytes) -> bytes:
    media = negotiate(headers.get(b"accept"), sent, MEDIA_TYPES)
    if media is None:
        raise NotAcceptable(NAMES)
    return media


def _response(media: bytes, body: bytes) -> Response:
    return Response(200, [(b"content-type", media + b"; charset=utf-8" if media == CSV else media)], body)
