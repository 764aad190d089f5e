"""The types of requests in JSON, which also make the OpenAPI document."""

import typing
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import UNSET, Meta, UnsetType

from api.model.request_members import ENTITY_ROWS, OVERRIDES, REQUEST_ID, TOP, RequestMembers
from scoring.arrow.signature import MAX_EXACT_INTEGER
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import ModelFeatures

MAX_REQUEST_ID = 128
RequestId = Annotated[
    str, Meta(min_length=1, max_length=MAX_REQUEST_ID, description="Echoed in the answer and in X-Request-Id.")
]
Top = Annotated[int, Meta(ge=1, description="How many of the best entities `/inference` lists; `/scores` ignores it.")]
String = Annotated[str, Meta(max_length=4096)]
KeyString = Annotated[str, Meta(min_length=1, max_length=512)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# `1.0` is an integer in JSON Schema. From MAX_EXACT_INTEGER on, a double represents several integers.
Integral32 = Annotated[float, Meta(ge=-(2**31), le=2**31 - 1, multiple_of=1)]
Integral64 = Annotated[float, Meta(ge=1 - MAX_EXACT_INTEGER, le=MAX_EXACT_INTEGER - 1, multiple_of=1)]
FLOAT32_MAX = 3.4028234663852886e38
Float32 = Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
Timestamp = Annotated[datetime, Meta(tz=True)]

KEY_TYPES: dict[str, Any] = {"int32": Int32, "int64": Int64, "string": KeyString}
KEY_EXAMPLES: dict[str, tuple[Any, ...]] = {"int32": (1001, 1002), "int64": (1001, 1002), "string": ("a-1", "a-2")}
INPUT_TYPES: dict[pa.DataType, tuple[Any, Any]] = {
    pa.bool_(): (bool, True),
    pa.int32(): (Int32 | Integral32, 1),
    pa.int64(): (Int64 | Integral64, 1),
    pa.float32(): (Float32, 0.5),
    pa.float64(): (float, 0.5),
    pa.string(): (String, "text"),
    pa.timestamp("ns"): (Timestamp, "2026-01-31T12:00:00Z"),
    pa.timestamp("us", "UTC"): (Timestamp, "2026-01-31T12:00:00Z"),
}
# Types whose values are strings in JSON.
QUOTED = {pa.string(), pa.timestamp("ns"), pa.timestamp("us", "UTC")}
# The type of an input that an on-demand feature view reads from the request with another declared type.
ANY_INPUT: tuple[Any, Any] = (bool | Int64 | float | String, 1)


def list_type(element: Any) -> type[msgspec.Struct]:
    """Return a type for `convert_list`. For `list[element]` itself, msgspec computes a slow hash per call (0.21)."""
    return msgspec.defstruct("Values", [("values", list[element])], array_like=True, frozen=True)


def convert_list(values: list[Any], type_: type[msgspec.Struct]) -> list[Any]:
    """Return `values` converted to a `list_type`.

    Raises:
        msgspec.ValidationError: an element does not fit. The message ends in its place, "at `$[<index>]`".
    """
    try:
        return msgspec.convert((values,), type_).values  # type: ignore[attr-defined,no-any-return]  # made dynamically
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(str(error).replace("`$[0]", "`$")) from None


def columns_of(features: ModelFeatures) -> dict[str, tuple[Any, Any]]:
    """Return column of a request → its type and an example, join keys first."""
    columns = {key.name: (KEY_TYPES[key.dtype], KEY_EXAMPLES[key.dtype][0]) for key in features.join_keys}
    for name, dtype in features.request_columns.items():
        if name not in columns:
            plain, example = ANY_INPUT if dtype is None else INPUT_TYPES[dtype]
            # null is an unknown value, handled by the policy for missing features, as in a batch request.
            columns[name] = (typing.Optional[plain], example)  # noqa: UP045 - `|` does not take these at run time
    return columns


def request_types(
    types: Mapping[str, Any], overridable: Mapping[str, Any], members: RequestMembers, max_entities: int
) -> tuple[type[msgspec.Struct], type[msgspec.Struct]]:
    """Return the types of an entity row and of a body.

    Their fields are `column_0`, `list_0`, `single_0`, `override_0` and so on (`field_names`).

    Args:
        types: column → type of a value.
        overridable: overridable input → type of a value.
        members: the members for the columns.
        max_entities: maximum number of entities per request.
    """
    # Field names are generated and mapped by `rename`, because a column need not be a Python identifier.
    fields = field_names("column", types)
    overrides = _overrides_member(overridable)
    row = msgspec.defstruct(
        "EntityRow",
        [*zip(fields, types.values(), strict=True), *overrides],
        rename=dict(zip(fields, types, strict=True)),
        forbid_unknown_fields=True,
        frozen=True,
    )
    size = Meta(min_length=1, max_length=max_entities)
    rows: Any = Annotated[list[row], size]  # type: ignore[valid-type]  # made here
    lists, singles = field_names("list", members.lists), field_names("single", members.singles)
    optional = [(field, types[name]) for field, name in zip(singles, members.singles, strict=True)]
    optional += [(field, Annotated[list[types[name]], size]) for field, name in zip(lists, members.lists, strict=True)]  # type: ignore[valid-type]
    required: list[Any] = [(REQUEST_ID, RequestId)]
    (optional if members.lists else required).append((ENTITY_ROWS, rows))
    optional.append((TOP, Top))
    given = [(field, type_ | UnsetType, UNSET) for field, type_ in optional]
    rename = dict(zip([*lists, *singles], [*members.lists.values(), *members.singles], strict=True))
    return row, msgspec.defstruct(
        "Request", [*required, *given, *overrides], rename=rename, forbid_unknown_fields=True, frozen=True
    )


def entity_fields(keys: Sequence[JoinKey] | None) -> tuple[list[tuple[str, Any]], Mapping[str, str]]:
    """Return the fields of a Struct that names an entity, (field, type), and field → join key.

    None stands for the keys of any model.
    """
    if keys is None:
        return [("key", int | str)], {"key": "<key>"}
    fields = field_names("column", keys)
    types = [(field, KEY_TYPES[key.dtype]) for field, key in zip(fields, keys, strict=True)]
    return types, dict(zip(fields, (key.name for key in keys), strict=True))


def field_names(what: str, names: Collection[Any]) -> list[str]:
    """Return generated names of fields: a column's name need not be a Python identifier."""
    return [f"{what}_{place}" for place in range(len(names))]


def _overrides_member(overridable: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    if not overridable:
        return []
    fields = field_names("override", overridable)
    type_: Any = msgspec.defstruct(
        "Overrides",
        [(field, type_ | UnsetType, UNSET) for field, type_ in zip(fields, overridable.values(), strict=True)],
        rename=dict(zip(fields, overridable, strict=True)),
        forbid_unknown_fields=True,
        frozen=True,
    )
    return [(OVERRIDES, type_ | UnsetType, UNSET)]
