"""The request that one model version needs: its JSON form follows from the join keys and request-time inputs."""

import json
import typing
from datetime import datetime
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import Meta

from api.errors import InvalidRequest, MalformedBody
from scoring.errors import ModelRefused
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import ModelFeatures

REQUEST_ID = "request_id"
ENTITY_ROWS = "entity_rows"
# Members that an answer puts beside an entity's keys.
TAKEN = {"score", "reason"}

RequestId = Annotated[str, Meta(min_length=1, max_length=128, description="Echoed in the answer and in X-Request-Id.")]
Text = Annotated[str, Meta(max_length=4096)]
KeyText = Annotated[str, Meta(min_length=1, max_length=512)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
FLOAT32_MAX = 3.4028234663852886e38
Float32 = Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
Moment = Annotated[datetime, Meta(tz=True)]

KEY_TYPES: dict[str, Any] = {"int32": Int32, "int64": Int64, "string": KeyText}
KEY_EXAMPLES: dict[str, tuple[Any, ...]] = {"int32": (1001, 1002), "int64": (1001, 1002), "string": ("a-1", "a-2")}
INPUT_TYPES: dict[pa.DataType, tuple[Any, Any]] = {
    pa.bool_(): (bool, True),
    pa.int32(): (Int32, 1),
    pa.int64(): (Int64, 1),
    pa.float32(): (Float32, 0.5),
    pa.float64(): (float, 0.5),
    pa.string(): (Text, "text"),
    pa.timestamp("ns"): (Moment, "2026-01-31T12:00:00Z"),
    pa.timestamp("us", "UTC"): (Moment, "2026-01-31T12:00:00Z"),
}
# What an on-demand feature view takes from the request and declares as something else.
ANY_INPUT: tuple[Any, Any] = (bool | Int64 | float | Text, 1)


class EntityRequest(msgspec.Struct, frozen=True):
    """A decoded request."""

    request_id: str
    entity_rows: dict[str, list[Any]]
    """Join keys and request-time inputs: column → n_rows values, in request order."""
    rows: int


class RequestForm:
    """How a request for one model version looks, and how it is read.

    One join key and no request-time inputs: `{"request_id": .., "<key>s": [..]}`; else
    `{"request_id": .., "entity_rows": [{"<key>": .., ..}, ..]}`.

    Raises:
        ModelRefused: a join key has a name that the answers use themselves.
    """

    def __init__(self, model: str, features: ModelFeatures, max_entities: int) -> None:
        self.keys = features.join_keys
        clash = [key.name for key in self.keys if key.name in TAKEN]
        if clash:
            raise ModelRefused(
                model, f"its join key {clash[0]!r} has the name of a member of the answers: rename the key."
            )
        self.columns = _columns(features)
        self.single = self.keys[0] if len(self.columns) == 1 else None
        self.entities_field = f"{self.single.name}s" if self.single else ENTITY_ROWS
        size = Meta(min_length=1, max_length=max_entities)
        # Field names are ours and the JSON names come by `rename`: a key need not be a Python identifier.
        item = KEY_TYPES[self.single.dtype] if self.single else self._row_type()
        self.body_type = msgspec.defstruct(
            "Request",
            [("request_id", RequestId), ("entities", Annotated[list[item], size])],  # type: ignore[valid-type]  # made here
            rename={"entities": self.entities_field},
            forbid_unknown_fields=True,
            frozen=True,
        )
        self._decoder = msgspec.json.Decoder(self.body_type)

    def decode(self, body: bytes) -> EntityRequest:
        """The request in `body`, strictly: no value is converted, no member is ignored.

        Raises:
            MalformedBody: no JSON text in UTF-8.
            InvalidRequest: JSON, but with a wrong, missing, unknown or repeated member.
        """
        try:
            request: Any = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            check_is_json(body)
            raise InvalidRequest(first_upper(str(error))) from None
        self._check_repeated(body, request)
        rows = len(request.entities)
        if self.single:
            return EntityRequest(request.request_id, {self.single.name: request.entities}, rows)
        entity_rows = {
            name: [getattr(row, field) for row in request.entities]
            for name, field in zip(self.columns, self._row_fields(), strict=True)
        }
        return EntityRequest(request.request_id, entity_rows, rows)

    def entity(self, request: EntityRequest, row: int) -> dict[str, Any]:
        """The join keys of one row, as the answers name it: `{"driver_id": 1001}`."""
        return {key.name: request.entity_rows[key.name][row] for key in self.keys}

    def choice(self, request: EntityRequest, row: int) -> Any:
        """One row as a prediction: its key where there is one, else the object of its join keys."""
        entity = self.entity(request, row)
        return entity if len(self.keys) > 1 else entity[self.keys[0].name]

    def example(self) -> dict[str, Any]:
        """A request as it could be sent."""
        if self.single:
            return {REQUEST_ID: "uuid-1", self.entities_field: list(KEY_EXAMPLES[self.single.dtype])}
        row = {name: example for name, (_, example) in self.columns.items()}
        return {REQUEST_ID: "uuid-1", self.entities_field: [row]}

    def schema(self, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """JSON Schema of the request and the components that it refers to."""
        (schema,), components = msgspec.json.schema_components((self.body_type,), ref_template=ref_template)
        return schema, components

    def key_schemas(self) -> dict[str, Any]:
        """Join key → JSON Schema of its values."""
        return {key.name: msgspec.json.schema(KEY_TYPES[key.dtype]) for key in self.keys}

    def _row_fields(self) -> list[str]:
        return [f"column_{place}" for place in range(len(self.columns))]

    def _row_type(self) -> Any:
        fields = list(zip(self._row_fields(), self.columns.items(), strict=True))
        return msgspec.defstruct(
            "EntityRow",
            [(field, type_) for field, (_, (type_, _)) in fields],
            rename={field: name for field, (name, _) in fields},
            forbid_unknown_fields=True,
            frozen=True,
        )

    def _check_repeated(self, body: bytes, request: Any) -> None:
        # msgspec keeps the last of two members of one name. Each text stands in two quotes, so a body with exactly the
        # quotes that the decoded request accounts for repeats nothing; another one is read again, slowly.
        if self.single:
            texts = 3 + (len(request.entities) if self.single.dtype == "string" else 0)
            if body.count(b'"') == 2 * texts:
                return
        json.loads(body, object_pairs_hook=_refuse_repeated)


def check_is_json(body: bytes) -> None:
    """Nothing, if `body` is one JSON text in UTF-8.

    Raises:
        MalformedBody: it is not.
    """
    if not body:
        raise MalformedBody("it is empty")
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise MalformedBody("it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise MalformedBody(str(error).removeprefix("JSON is malformed: ")) from None


def first_upper(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _columns(features: ModelFeatures) -> dict[str, tuple[Any, Any]]:
    columns = {key.name: _key_column(key) for key in features.join_keys}
    for name, dtype in features.request_columns.items():
        if name not in columns:
            plain, example = ANY_INPUT if dtype is None else INPUT_TYPES[dtype]
            # null is an unknown value, which the policy for missing features decides on, as in a batch request.
            columns[name] = (typing.Optional[plain], example)  # noqa: UP045 - `|` does not take these at run time
    return columns


def _key_column(key: JoinKey) -> tuple[Any, Any]:
    return KEY_TYPES[key.dtype], KEY_EXAMPLES[key.dtype][0]


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"Duplicate JSON member {repeated[:50]!r}")
    return members
