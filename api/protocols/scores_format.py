"""POST /scores in JSON, NDJSON, CSV, Parquet and Arrow streams, and its requests with many entities."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from api.errors import ClientLeft, DeadlineExceeded, NotAcceptable, UnsupportedMediaType
from api.model.model_slot import Served
from api.model.request_schema import EntityRequest, RequestForm
from api.model.scorer import RowScores
from api.protocols.answers import AnswerForm, answer_form, model_of
from api.protocols.csv_rows import decode_csv
from api.protocols.json_format import JsonFormat
from api.protocols.operation import Bodies, Operation
from api.protocols.response import CSV, JSON, Headers, Response, media_type, negotiate
from api.protocols.scoring import Scoring
from api.protocols.tables import ARROW, FORMS, PARQUET, TableAnswer, block_of, decode_table
from api.protocols.wire_format import Call, request_id_of
from scoring.settings import Settings

NDJSON = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl")
TEXTS: dict[bytes, Callable[[RequestForm, str, bytes, int], EntityRequest]] = {
    CSV: decode_csv,
    **dict.fromkeys(NDJSON, RequestForm.decode_lines),
}
MEDIA_TYPES = (JSON, *NDJSON[:1], CSV, ARROW, PARQUET, *NDJSON[1:])
NAMES = [media.decode() for media in MEDIA_TYPES]
# The limit of tables, as sent and decompressed, is this multiple of SERVING_MAX_BODY_BYTES.
TABLE_BODIES = 32
# Rows of a larger request that are scored in one micro-batch. Small requests that arrive meanwhile wait for it.
BLOCK_ROWS = 250
# Time between two looks at whether there is room for the next block.
PAUSE_S = 0.005
ANY = b"*/*"


class Answer(Protocol):
    """Collects the scores of a request's blocks."""

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """Append the scores of a block."""

    def finish(self) -> bytes:
        """Return the body of the response."""


class JsonAnswer:
    """An `Answer` in JSON: one object, as `AnswerForm.scores` makes it of one block."""

    def __init__(self, form: AnswerForm, served: Served, request_id: str) -> None:
        self._form = form
        self._served = served
        self._members: dict[str, Any] = {"request_id": request_id, "model": model_of(served)}
        self._lists: dict[str, list[bytes]] = {}

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """See `Answer`."""
        answer: Any = self._form.scores(self._served, request, scores)
        for name in answer.__struct_fields__[2:]:
            items = msgspec.json.encode(getattr(answer, name))[1:-1]
            self._lists.setdefault(name, []).extend([items] if items else [])

    def finish(self) -> bytes:
        """See `Answer`."""
        lists = {name: msgspec.Raw(b"[" + b",".join(items) + b"]") for name, items in self._lists.items()}
        return msgspec.json.encode(self._members | lists)


class LinesAnswer:
    """An `Answer` in NDJSON: each line is an entity, as in JSON. An imputed one has its reason, as in a table."""

    def __init__(self, form: AnswerForm, served: Served) -> None:
        self._form = form
        self._served = served
        self._encoder = msgspec.json.Encoder()
        self._parts: list[bytes] = []

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """See `Answer`."""
        keys = self._served.form.key_columns(request)
        rows = self._form.entity_scores(keys, scores.outputs, scores.reasons)
        self._parts.append(self._encoder.encode_lines(rows))

    def finish(self) -> bytes:
        """See `Answer`."""
        return b"".join(self._parts)


class ScoresFormat(JsonFormat):
    """The `WireFormat` of /scores."""

    def __init__(self, settings: Settings) -> None:
        """Create the format."""
        super().__init__(AnswerForm.scores, settings)
        self._max_table_rows = max(settings.max_entities, settings.max_bulk_entities)
        self._max_table_bytes = TABLE_BODIES * settings.max_body_bytes
        self._bulk_deadline_s = settings.bulk_deadline_s
        # Their number bounds the memory that tables take while they are decoded and encoded.
        self._threads = ThreadPoolExecutor(2, "table")

    def max_body_bytes(self, headers: Headers) -> int:
        """See `WireFormat.max_body_bytes`."""
        if _is_plain_json(headers):
            return self._max_body_bytes
        media = media_type(headers)
        if media not in MEDIA_TYPES:
            raise UnsupportedMediaType(NAMES)
        _wanted(headers, media)
        length = headers.get(b"content-length", b"")
        if media not in FORMS or (length.isdigit() and int(length) <= self._max_body_bytes):
            return self._max_body_bytes
        return self._max_table_bytes

    async def respond(self, call: Call, scoring: Scoring) -> Response:
        """See `WireFormat.respond`."""
        if _is_plain_json(call.headers):
            return await super().respond(call, scoring)
        own = media_type(call.headers)
        wanted = _wanted(call.headers, own)
        if own == wanted == JSON:
            return await super().respond(call, scoring)
        served = scoring.current(call.context)
        if own == JSON:
            request = served.form.decode(call.body)
        else:
            request_id = call.context.request_id = request_id_of(call.headers)
            if own in FORMS:
                return await self._respond_to_table(own, wanted, served, request_id, call, scoring)
            request = TEXTS[own](served.form, request_id, call.body, self._max_entities)
        answer = self._answer(wanted, served, request.request_id)
        answer.add(request, await scoring.score(served, request, call.context))
        return _response(wanted, answer.finish())

    async def _respond_to_table(
        self, own: bytes, wanted: bytes, served: Served, request_id: str, call: Call, scoring: Scoring
    ) -> Response:
        limits = self._max_table_rows, self._max_table_bytes
        table = await self._in_thread(decode_table, own, served.form, call.body, *limits)
        answer = self._answer(wanted, served, request_id)
        if table.num_rows <= self._max_entities:
            request = block_of(served.form, request_id, table, 0, table.num_rows)
            answer.add(request, await scoring.score(served, request, call.context))
            return _response(wanted, answer.finish())
        with scoring.bulk(call.context):
            await self._score_blocks(served, request_id, table, answer, call, scoring)
            return _response(wanted, await self._in_thread(answer.finish))

    async def _score_blocks(
        self, served: Served, request_id: str, table: pa.Table, answer: Answer, call: Call, scoring: Scoring
    ) -> None:
        """Score a table with one version, one block after the other, each as a request of its own.

        The whole answer is kept until the last block is scored, so that an error of any block still has its status.
        """
        ends_at = time.monotonic() + self._bulk_deadline_s
        left = asyncio.ensure_future(call.left())
        try:
            for start in range(0, table.num_rows, BLOCK_ROWS):
                while scoring.full and time.monotonic() < ends_at:
                    await asyncio.sleep(PAUSE_S)
                if left.done():
                    raise ClientLeft
                if time.monotonic() >= ends_at:
                    raise DeadlineExceeded(self._bulk_deadline_s)
                request = block_of(served.form, request_id, table, start, min(BLOCK_ROWS, table.num_rows - start))
                answer.add(request, await scoring.score(served, request, call.context))
        finally:
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left

    def _answer(self, media: bytes, served: Served, request_id: str) -> Answer:
        if media in {ARROW, PARQUET, CSV}:
            return TableAnswer(media, served, request_id)
        form = answer_form(served.form, self._policy, served.scorer.outputs)
        return JsonAnswer(form, served, request_id) if media == JSON else LinesAnswer(form, served)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

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


def _wanted(headers: Headers, own: bytes) -> bytes:
    media = negotiate(headers.get(b"accept"), own, MEDIA_TYPES)
    if media is None:
        raise NotAcceptable(NAMES)
    return media


def _response(media: bytes, body: bytes) -> Response:
    return Response(200, [(b"content-type", media + b"; charset=utf-8" if media == CSV else media)], body)
