"""Examples of valid requests for one model version, for its OpenAPI document and for errors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from api.model.request_members import REQUEST_ID, RequestMembers
from api.model.request_types import KEY_EXAMPLES
from scoring.feast_plugins.join_keys import JoinKey
from scoring.online.reading import EntityRows


class RequestExamples:
    """Makes valid requests, of entities in the online store and the version's input example, or of made-up values."""

    def __init__(
        self,
        keys: Sequence[JoinKey],
        columns: Mapping[str, tuple[Any, Any]],
        members: RequestMembers,
        input_example: pa.Table | None,
    ) -> None:
        """Store the schema of the requests; see `RequestSchema`."""
        self.stored_keys: EntityRows | None = None
        """Join keys of entities in the online store; None if none are known."""
        self._keys = keys
        self._members = members
        names = {key.name for key in keys}
        self._made_up_inputs = {name: value for name, (_, value) in columns.items() if name not in names}
        self._inputs = self._made_up_inputs | _plain_values(input_example, self._made_up_inputs)

    def request(self, *, real: bool = True) -> dict[str, Any]:
        """Make a valid request in JSON from `columns`."""
        return {REQUEST_ID: "uuid-1", **self._members.of_columns(self.columns(real=real))}

    def columns(self, *, real: bool = True) -> dict[str, list[Any]]:
        """Make the columns of a valid request. Values are made up unless `real`, or if no real ones are known."""
        inputs = self._inputs if real else self._made_up_inputs
        keys = self.stored_keys if real else None
        if keys is None:
            keys = {key.name: KEY_EXAMPLES[key.dtype] for key in self._keys}
            keys |= {name: [values[0]] * len(values) for name, values in list(keys.items())[:-1]}  # a context
        columns = {name: list(values) for name, values in keys.items()}
        rows = max(map(len, columns.values()), default=1)
        return columns | {name: [value] * rows for name, value in inputs.items()}


def _plain_values(row: pa.Table | None, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of a row, if there is one, that JSON represents as they are."""
    if row is None or not row.num_rows:
        return {}
    values = {name: row[name][0].as_py() for name in names if name in row.column_names}
    return {name: value for name, value in values.items() if type(value) in {bool, int, float, str}}
