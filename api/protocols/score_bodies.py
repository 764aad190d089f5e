"""The bodies of scores in each media type, collected from the blocks of a request."""

from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from api.model.model_slot import Served
from api.model.request_schema import EntityRequest
from api.model.scorer import RowScores
from api.protocols.answers import AnswerSchema, answer_schema, model_of
from api.protocols.response import CSV, JSON
from api.protocols.tables import ARROW, PARQUET
from scoring.settings import MissingFeaturesPolicy


class Answer(Protocol):
    """Collects the scores of a request's blocks."""

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """Append the scores of a block."""

    def finish(self) -> bytes:
        """Return the body of the response."""


class JsonAnswer:
    """An `Answer` in JSON: one object, as `AnswerSchema.scores` makes it of one block."""

    def __init__(self, answers: AnswerSchema, served: Served, request_id: str) -> None:
        self._answers = answers
        self._served = served
        self._members: dict[str, Any] = {"request_id": request_id, "model": model_of(served)}
        self._lists: dict[str, list[bytes]] = {}

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """See `Answer`."""
        answer: Any = self._answers.scores(self._served, request, scores)
        for name in answer.__struct_fields__[2:]:
            items = msgspec.json.encode(getattr(answer, name))[1:-1]
            self._lists.setdefault(name, []).extend([items] if items else [])

    def finish(self) -> bytes:
        """See `Answer`."""
        lists = {name: msgspec.Raw(b"[" + b",".join(items) + b"]") for name, items in self._lists.items()}
        return msgspec.json.encode(self._members | lists)


class LinesAnswer:
    """An `Answer` in NDJSON: each line is an entity, as in JSON. An imputed one has its reason, as in a table."""

    def __init__(self, answers: AnswerSchema, served: Served) -> None:
        self._answers = answers
        self._served = served
        self._encoder = msgspec.json.Encoder()
        self._parts: list[bytes] = []

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """See `Answer`."""
        keys = self._served.schema.key_columns(request)
        rows = self._answers.entity_scores(keys, scores.outputs, scores.reasons)
        self._parts.append(self._encoder.encode_lines(rows))

    def finish(self) -> bytes:
        """See `Answer`."""
        return b"".join(self._parts)


class TableAnswer:
    """Collects the scores of a request's blocks as a table with the columns and types of a batch output."""

    def __init__(self, media: bytes, served: Served, request_id: str) -> None:
        """Begin an answer in ARROW, PARQUET or CSV."""
        self._media = media
        self._key_columns = served.schema.key_columns
        version = served.scorer.version
        fields = [*((key.name, key.arrow_type) for key in served.schema.keys), *served.scorer.outputs.schema]
        about = {"request_id": request_id, "model_name": version.name, "model_version": str(version.version)}
        self._schema = pa.schema([*fields, ("reason", pa.string())], metadata=about)
        self._batches: list[pa.RecordBatch] = []

    def add(self, request: EntityRequest, scores: RowScores) -> None:
        """Append the scores of a block."""
        columns = [*self._key_columns(request), *scores.outputs, scores.reasons]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def finish(self) -> bytes:
        """Return the encoded table. Blocking, and the interpreter is free meanwhile."""
        table = pa.Table.from_batches(self._batches, self._schema).combine_chunks()
        sink = pa.BufferOutputStream()
        if self._media == PARQUET:
            pq.write_table(table, sink)
        elif self._media == CSV:
            pa.csv.write_csv(table, sink)
        else:
            with pa.ipc.new_stream(sink, self._schema) as stream:
                stream.write_table(table)
        return bytes(sink.getvalue())


def answer_in(media: bytes, served: Served, policy: MissingFeaturesPolicy, request_id: str) -> Answer:
    """Begin the answer in a media type."""
    if media in {ARROW, PARQUET, CSV}:
        return TableAnswer(media, served, request_id)
    answers = answer_schema(served.schema, policy, served.scorer.outputs)
    return JsonAnswer(answers, served, request_id) if media == JSON else LinesAnswer(answers, served)
