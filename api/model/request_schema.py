"""The requests of one model version, in JSON, NDJSON or columns, derived from its join keys and request inputs."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import UNSET

from api.errors import InvalidRequest
from api.model import strict_json
from api.model.request_examples import RequestExamples
from api.model.request_members import OVERRIDES, REQUEST_ID, TOP, RequestMembers, listing
from api.model.request_types import (
    INPUT_TYPES,
    QUOTED,
    columns_of,
    convert_list,
    field_names,
    list_type,
    request_types,
)
from scoring.errors import ModelRefused
from scoring.features.model_features import ModelFeatures

# Members of a response in addition to an entity's keys.
ANSWER_MEMBERS = {"score", "outputs", "reason"}


class EntityRequest(msgspec.Struct, frozen=True):
    """A decoded request."""

    request_id: str
    entity_rows: dict[str, list[Any]]
    """Join keys and request inputs: column → n_rows values, in request order. Also each overridable input; None where
    it is not overridden."""
    rows: int
    top: int | None = None
    """How many of the best entities to list; None for no list."""


class RequestSchema:
    """The columns and the JSON of the requests for one model version, and their decoder.

    Every model accepts `{"request_id": .., "entity_rows": [{"<column>": .., ..}, ..]}`. The columns may also be members
    of the request: `"<column>s": [..]` with one value per entity, or `"<column>": ..` with one value for all. At least
    one of them is a list. A member whose name is taken by another column or member does not exist.

    `"overrides": {"<feature>": ..}` in a request or in one of its entity rows overrides overridable features.
    """

    def __init__(
        self, model: str, features: ModelFeatures, max_entities: int, input_example: pa.Table | None = None
    ) -> None:
        """Define the schema.

        Args:
            model: `name/version`, for errors.
            features: the version's link to the feature store.
            max_entities: maximum number of entities per request.
            input_example: a row of the version's input example, for the request inputs of `examples`.

        Raises:
            ModelRefused: a join key has the name of a member of the answers.
        """
        self.keys = features.join_keys
        clash = [key.name for key in self.keys if key.name in ANSWER_MEMBERS]
        if clash:
            raise ModelRefused(
                model, f"its join key {clash[0]!r} clashes with a member of the answers: rename the key."
            )
        self.columns = columns_of(features)
        self._key_names = {key.name for key in self.keys}
        self._integers = {name for name, dtype in features.request_columns.items() if dtype in {pa.int32(), pa.int64()}}
        self._integers -= self._key_names
        types = {column.name: column.dtype for column in features.signature.inputs}
        self._overridable = {name: INPUT_TYPES[types[name]][0] for name in features.overridable}
        self._integers |= {name for name in features.overridable if types[name] in {pa.int32(), pa.int64()}}
        self._unbounded = {name for name, dtype in features.request_columns.items() if dtype in {pa.float64(), None}}
        self._unbounded |= {name for name in features.overridable if types[name] == pa.float64()}
        if self._overridable and OVERRIDES in self.columns:
            raise ModelRefused(model, f"its request column {OVERRIDES!r} has a reserved name: rename the column.")
        self.members = RequestMembers(self.columns)
        self.examples = RequestExamples(self.keys, self.columns, self.members, input_example)
        self._listed_key = self.keys[0] if self.members.only_lists else None
        """The only column, if its values may be a list."""
        # Fields of the decoded request.
        self._list_fields = list(zip(self.members.lists, field_names("list", self.members.lists), strict=True))
        self._single_fields = list(zip(self.members.singles, field_names("single", self.members.singles), strict=True))
        self._quoted = [name for name, dtype in features.request_columns.items() if dtype in QUOTED]
        overrides = [f"`{OVERRIDES}` (an object with {listing(self._overridable)})"] if self._overridable else []
        optional = ", ".join([f"`{TOP}`", *overrides])
        self._expected = f"Expected members: `{REQUEST_ID}`, and {self.members.describe()}. Optional: {optional}."
        self._expected_in_line = f"Expected members: {listing(self.columns)}."
        self._expected_in_line += "".join(f" Optional: {member}." for member in overrides)
        self.column_types = {name: list_type(type_) for name, (type_, _) in self.columns.items()}
        self.column_types |= {name: list_type(type_ | None) for name, type_ in self._overridable.items()}
        row_type, self.body_type = request_types(
            {name: type_ for name, (type_, _) in self.columns.items()}, self._overridable, self.members, max_entities
        )
        self._row_decoder = msgspec.json.Decoder(row_type)
        self._decoder = msgspec.json.Decoder(self.body_type)

    def decode(self, body: bytes) -> EntityRequest:
        """Decode a request strictly. Values are not converted, and unknown members are refused.

        Raises:
            MalformedBody: the body is not JSON in UTF-8.
            InvalidRequest: the body is JSON with a wrong, missing, unknown or duplicate member.
        """
        request: Any = strict_json.decode(self._decoder, body, self.invalid)
        top = None if request.top is UNSET else request.top
        if self._listed_key and not self._overridable and request.list_0 is not UNSET and request.entity_rows is UNSET:
            keys = request.list_0
            strings_of_keys = len(keys) if self._listed_key.dtype == "string" else 0
            strict_json.check_duplicates(body, self.invalid, 3 + (top is not None) + strings_of_keys)
            return EntityRequest(request.request_id, {self._listed_key.name: keys}, len(keys), top)
        lists = {name: given for name, field in self._list_fields if (given := getattr(request, field)) is not UNSET}
        singles = {
            name: given for name, field in self._single_fields if (given := getattr(request, field)) is not UNSET
        }
        if request.entity_rows is not UNSET:
            if lists or singles:
                raise self.invalid(self.members.problem(lists, singles, rows_given=True))
            strict_json.check_duplicates(body, self.invalid)
            rows = request.entity_rows
            return EntityRequest(request.request_id, self._columns_of(rows, request), len(rows), top)
        number = len(next(iter(lists.values()), ()))
        entity_rows = lists | {name: [value] * number for name, value in singles.items()}
        members = len(lists) + len(singles)
        if not members == len(entity_rows) == len(self.columns) or set(map(len, lists.values())) != {number}:
            raise self.invalid(self.members.problem(lists, singles, rows_given=False))
        strings: int | None = 2 + members + (top is not None) + self._count_strings(lists, singles)
        if self._overridable:
            entity_rows |= self._overridden(request, number)
            strings = strings if request.overrides is UNSET else None
        strict_json.check_duplicates(body, self.invalid, strings)
        return EntityRequest(request.request_id, self._integral(entity_rows), number, top)

    def decode_lines(self, request_id: str, body: bytes, max_rows: int, more: str = "more") -> EntityRequest:
        """Decode a request in NDJSON: each line is an entity row, as in `entity_rows`. Empty lines are ignored.

        `more` describes a number of rows above `max_rows` in the error.

        Raises:
            MalformedBody: a line is not JSON in UTF-8.
            InvalidRequest: a line has a wrong, missing, unknown or duplicate member, or there are no or too many rows.
        """
        rows: list[Any] = []
        for number, line in enumerate(body.split(b"\n"), 1):
            if not line.strip():
                continue

            def invalid(problem: str, number: int = number) -> InvalidRequest:
                return InvalidRequest(f"Line {number}: {problem}", self._expected_in_line, self.examples.request())

            rows.append(strict_json.decode(self._row_decoder, line, invalid, f"line {number}: "))
            strict_json.check_duplicates(line, invalid)
            if len(rows) > max_rows:
                break
        self.check_rows(len(rows), max_rows, more)
        return EntityRequest(request_id, self._columns_of(rows), len(rows))

    def from_columns(
        self,
        request_id: str,
        columns: Mapping[str, list[Any]],
        max_rows: int,
        place: Callable[[int], str] = "row {}".format,
    ) -> EntityRequest:
        """Make a request from columns, as other formats than JSON have them. The same values are valid as in JSON.

        Args:
            request_id: its id.
            columns: column → its values (n_rows,) as Python objects; None is a null. Columns of overridable inputs are
                optional; null is not overridden.
            max_rows: maximum number of rows.
            place: returns the description of a row, counted from 0, for errors.

        Raises:
            InvalidRequest: a column is missing or unknown, columns differ in length, there are no or too many rows, or
                a value does not fit its column.
        """
        self.check_columns(list(columns))
        first, rows = next((name, len(values)) for name, values in columns.items())
        for name, values in columns.items():
            if len(values) != rows:
                problem = f"Column {name!r} has {len(values)} values, and {first!r} has {rows}"
                raise self.invalid_columns(problem)
        self.check_rows(rows, max_rows)
        entity_rows: dict[str, list[Any]] = {}
        for name, type_ in self.column_types.items():
            try:
                entity_rows[name] = convert_list(columns[name] if name in columns else [None] * rows, type_)
            except msgspec.ValidationError as error:
                index = re.search(r"`\$\[(\d+)\]`$", str(error))
                at = f", {place(int(index[1]))}" if index else ""
                problem = strict_json.sentence(error).partition(" - at ")[0]
                raise self.invalid_columns(f"Column {name!r}{at}: {problem}") from None
            for row, value in enumerate(entity_rows[name] if name in self._unbounded else ()):
                if isinstance(value, float) and not math.isfinite(value):
                    raise self.invalid_columns(f"Column {name!r}, {place(row)}: Expected a finite number")
        return EntityRequest(request_id, self._integral(entity_rows), rows)

    def check_columns(self, names: Sequence[str]) -> None:
        """Raise InvalidRequest unless these are the names of a request's columns, in any order."""
        if names == list(self.columns):
            return
        for place, name in enumerate(names):
            if name not in self.column_types:
                raise self.invalid_columns(f"Unknown column {name[:50]!r}")
            if name in names[:place]:
                raise self.invalid_columns(f"Duplicate column {name!r}")
        for name in self.columns:
            if name not in names:
                raise self.invalid_columns(f"Missing column {name!r}")

    def check_rows(self, rows: int, max_rows: int, many: str | None = None) -> None:
        """Raise InvalidRequest unless a request may have `rows` rows. `many` describes a number that is not known."""
        if not 0 < rows <= max_rows:
            raise self.invalid_columns(f"Expected 1 to {max_rows} rows, got {many if rows and many else rows}")

    def invalid_columns(self, problem: str) -> InvalidRequest:
        """Make the error for a request in columns with this problem, which names the expected columns."""
        expected = f"Expected columns: {listing(self.columns)}."
        if self._overridable:
            expected += f" Optional: {listing(self._overridable)}."
        return InvalidRequest(problem, expected, self.examples.request())

    def invalid(self, problem: str) -> InvalidRequest:
        """Make the error for a request with this problem, which names the expected members and a valid request."""
        return InvalidRequest(problem, self._expected, self.examples.request())

    def overrides(self, request: EntityRequest) -> list[str]:
        """Return the features that a request overrides."""
        given = ((name, request.entity_rows[name]) for name in self._overridable)
        return [name for name, values in given if values.count(None) < len(values)]

    def key_columns(self, request: EntityRequest) -> list[list[Any]]:
        """Return the values of each join key, in request order."""
        return [request.entity_rows[key.name] for key in self.keys]

    def _columns_of(self, rows: Sequence[Any], request: Any = None) -> dict[str, list[Any]]:
        fields = zip(self.columns, field_names("column", self.columns), strict=True)
        columns = {name: [getattr(row, field) for row in rows] for name, field in fields}
        return self._integral(columns | self._overridden(request, len(rows), rows))

    def _overridden(self, request: Any, number: int, rows: Sequence[Any] = ()) -> dict[str, list[Any]]:
        """Return the column of each overridable input. The value of an entity row precedes that of the request."""
        columns = {}
        for name, field in zip(self._overridable, field_names("override", self._overridable), strict=True):
            value = None if request is None else _override(request, field)
            own = [_override(row, field) for row in rows]
            columns[name] = [value if each is None else each for each in own] if rows else [value] * number
        return columns

    def _integral(self, entity_rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name in self._integers:
            entity_rows[name] = [value if value is None else int(value) for value in entity_rows[name]]
        return entity_rows

    def _count_strings(self, lists: Mapping[str, list[Any]], singles: Mapping[str, Any]) -> int:
        """Return how many strings in JSON the values of a request are; 0 for a column of any type."""
        count = 0
        for name in self._quoted:
            values = lists[name] if name in lists else [singles[name]]
            count += len(values) - (0 if name in self._key_names else values.count(None))
        return count


def _override(request: Any, field: str) -> Any:
    """Return the value that a request, or an entity row, has in place of a feature; None without one."""
    value = UNSET if request.overrides is UNSET else getattr(request.overrides, field)
    return None if value is UNSET else value
