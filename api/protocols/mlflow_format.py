"""The protocol of MLflow's scoring server: POST /invocations."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.errors import UnsupportedMediaType
from api.model import strict_json
from api.model.request_schema import RequestSchema
from api.model.scorer import RowScores
from api.protocols.answers import Reason
from api.protocols.csv_rows import read_csv
from api.protocols.operation import BODY_PROBLEMS, REF, Bodies, Operation
from api.protocols.problems import Problem
from api.protocols.response import CSV, JSON, JSON_HEADER, Headers, Response, media_type
from api.protocols.scoring import Scoring
from api.protocols.wire_format import Call, request_id_of
from scoring.arrow.signature import MAX_EXACT_INTEGER
from scoring.models.outputs import Outputs
from scoring.settings import Settings

ACCEPTED = ("application/json", "text/csv; charset=utf-8")
CHARSET = re.compile(rb";\s*charset\s*=\s*\"?([^;\"\s]*)", re.IGNORECASE)
UTF_8 = {b"utf-8", b"utf8", b"us-ascii"}
MEMBERS = ("dataframe_split", "dataframe_records", "instances", "inputs")
EXACTLY_ONE = f"Expected exactly one of the members {', '.join(f'`{name}`' for name in MEMBERS)}"
# The tokens NaN outside strings. MLflow's client sends them for pandas' missing values, although JSON has none.
# It never backtracks, not even if a string does not end.
NAN = re.compile(rb'("(?:[^"\\]|\\.)*+"?)|\bNaN\b')
# The statuses and error codes of MLflow's own server (3.17) for those of problems. Others keep their status.
STATUSES = {422: 400}
ERROR_CODES = {401: "UNAUTHENTICATED", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}

Columns = dict[str, list[Any]]
Cell = Annotated[Any, Meta(description="The value of a join key or request input; null if it is unknown.")]
Row = Annotated[Any, Meta(description="A row: an object, a list in the order of the columns, or the only cell.")]


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frame as pandas' `to_json(orient="split")` writes it. The index has no meaning here."""

    data: list[list[Cell]]
    columns: list[str] | None = None
    index: Any = None


class Invocation(msgspec.Struct, frozen=True):
    """A JSON body. As in MLflow, other members have no meaning."""

    dataframe_split: Split | UnsetType = UNSET
    dataframe_records: list[dict[str, Any]] | UnsetType = UNSET
    instances: list[Row] | UnsetType = UNSET
    inputs: list[Row] | dict[str, list[Cell]] | UnsetType = UNSET
    params: Any = None


class InvocationError(msgspec.Struct, frozen=True):
    """An error in MLflow's form."""

    error_code: str
    message: str
    instance: Annotated[str, Meta(description="Identifies this occurrence, also in the log.")]


INVOCATIONS = msgspec.json.Decoder(Invocation)


class MlflowFormat:
    """A `WireFormat` for frames of join keys and request inputs, in any order of columns."""

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_entities = settings.max_entities

    def check_headers(self, headers: Headers) -> int:
        """See `WireFormat.check_headers`."""
        charset = CHARSET.search(headers.get(b"content-type", b""))
        if media_type(headers) not in {JSON, CSV} or (charset and charset[1].lower() not in UTF_8):
            raise UnsupportedMediaType(ACCEPTED)
        return self._max_body_bytes

    async def respond(self, call: Call, scoring: Scoring) -> Response:
        """See `WireFormat.respond`."""
        call.context.request_id = request_id = request_id_of(call.headers)
        served = scoring.current(call.context)
        if media_type(call.headers) == CSV:
            columns, place = read_csv(served.schema, call.body, self._max_entities)
        else:
            columns, place = _read_json(served.schema, call.body), "row {}".format
        columns = _integer_keys(columns, served.schema)
        request = served.schema.from_columns(request_id, columns, self._max_entities, place)
        scores = await scoring.score(served, request, call.context)
        answer = {"predictions": _predictions(served.scorer.outputs, scores), "reasons": scores.reasons}
        return Response(200, [JSON_HEADER], msgspec.json.encode(answer))

    def problem(self, problem: Problem, headers: list[tuple[bytes, bytes]]) -> Response:
        """See `WireFormat.problem`. The members are MLflow's, and the problem's instance."""
        status = STATUSES.get(problem.status, problem.status)
        code = ERROR_CODES.get(status, "BAD_REQUEST")
        body = InvocationError(code, problem.detail, problem.instance)
        return Response(status, [JSON_HEADER, *headers], msgspec.json.encode(body))

    def operation(self, _path: str, bodies: Bodies) -> Operation:
        """See `WireFormat.operation`."""
        frame: dict[str, Any] = {"schema": bodies.schema(Invocation)}
        described = bodies.schemas["Invocation"]
        described["allOf"] = [{"oneOf": [{"required": [name]} for name in MEMBERS]}]
        cells = {"schema": {"type": "string", "format": "binary"}}
        if bodies.request_schema is not None:
            described["properties"]["dataframe_records"]["items"] = {"$ref": REF.format(name="EntityRow")}
            columns = bodies.example_columns
            rows = list(zip(*columns.values(), strict=True))
            frame["example"] = {"dataframe_split": {"columns": list(columns), "data": rows}}
        prediction: Any = bodies.answers.prediction
        answer = msgspec.defstruct(
            "Predictions",
            [("predictions", list[prediction]), ("reasons", list[Reason | None])],
        )
        return Operation(
            "invocations",
            "mlflow",
            "One prediction and reason per row of a frame",
            {"application/json": {"schema": bodies.schema(answer)}},
            {"application/json": {"schema": bodies.schema(InvocationError)}},
            tuple(status for status in BODY_PROBLEMS if status not in STATUSES),
            {"application/json": frame, "text/csv": cells},
        )


def _predictions(outputs: Outputs, scores: RowScores) -> list[Any]:
    """Return one value for each row, or an object if there are several outputs. A row without them has nulls.

    The object of such a row has all members, because pandas makes a frame only of a list without nulls.
    """
    if outputs.single:
        return scores.outputs[0]
    names = [column.name for column in outputs.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*scores.outputs, strict=True)]


def _read_json(schema: RequestSchema, body: bytes) -> Columns:
    """Decode the columns of a JSON body.

    Raises:
        MalformedBody: it is not JSON.
        InvalidRequest: it has another form.
    """
    if b"NaN" in body:
        body = NAN.sub(lambda found: found[1] or b"null", body)
    invocation: Invocation = strict_json.decode(INVOCATIONS, body, schema.invalid_columns, skips_members=True)
    strict_json.check_duplicates(body, schema.invalid_columns)
    if invocation.params:
        raise schema.invalid_columns("`params` is not supported: omit it")
    given = [member for member in MEMBERS if getattr(invocation, member) is not UNSET]
    if len(given) != 1:
        raise schema.invalid_columns(f"{EXACTLY_ONE}, got {' and '.join(given) or 'none'}")
    frame: Any = getattr(invocation, given[0])
    if isinstance(frame, Split):
        return _from_rows(frame.data, list(schema.columns) if frame.columns is None else frame.columns, schema)
    if isinstance(frame, dict):
        return frame
    if frame and isinstance(frame[0], dict):
        return _from_records(frame, schema)
    return _from_rows(frame, list(schema.columns), schema)


def _from_rows(rows: Sequence[Any], names: Sequence[str], schema: RequestSchema) -> Columns:
    """Turn rows of one value for each name into columns. If there is only one, rows need not be lists."""
    schema.check_columns(names)
    if len(names) == 1 and not any(isinstance(row, list) for row in rows):
        return {names[0]: list(rows)}
    for number, row in enumerate(rows):
        if not isinstance(row, list):
            raise schema.invalid_columns(f"Row {number} is not a list of values")
        if len(row) != len(names):
            raise schema.invalid_columns(f"Row {number} has {len(row)} values for {len(names)} columns")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _from_records(records: Sequence[Any], schema: RequestSchema) -> Columns:
    """Turn objects into columns. All must have the same members as the first."""
    names = records[0].keys()
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise schema.invalid_columns(f"Row {number} is not an object")
        if record.keys() != names:
            name = min(record.keys() ^ names)
            problem = f"has no {name[:50]!r}" if name in names else f"has {name[:50]!r}, which row 0 lacks"
            raise schema.invalid_columns(f"Row {number} {problem}")
    return {name: [record[name] for record in records] for name in names}


def _integer_keys(columns: Columns, schema: RequestSchema) -> Columns:
    """Convert floats in integer key columns to integers: pandas and NumPy turn integers to floats.

    Floats with a fraction, and floats that represent several integers, stay as they are and are refused later.
    """
    for key in schema.keys:
        values = columns.get(key.name, [])
        if key.dtype != "string" and any(type(value) is float for value in values):
            columns[key.name] = [int(each) if type(each) is float and _exact(each) else each for each in values]
    return columns


def _exact(value: float) -> bool:
    return value.is_integer() and abs(value) < MAX_EXACT_INTEGER
