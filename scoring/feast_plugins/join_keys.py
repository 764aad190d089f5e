"""The columns that identify an entity, and their types. Does not import Feast, so that any module may use it."""

from typing import Literal

import msgspec
import pyarrow as pa

ROW = "request_row__"
"""The column in which a join numbers the rows."""

NO_ENTITY = "__dummy_id"
"""Feast's join key of a view without entities: a string column that is empty in every row."""

KeyType = Literal["int32", "int64", "string"]

KEY_TYPES: dict[str, KeyType] = {"INT32": "int32", "INT64": "int64", "STRING": "string", "UUID": "string"}


class JoinKey(msgspec.Struct, frozen=True):
    """One column that identifies an entity, under the name that requests use."""

    name: str
    dtype: KeyType

    @property
    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type of its column."""
        return {"int32": pa.int32(), "int64": pa.int64(), "string": pa.string()}[self.dtype]


Keys = tuple[tuple[str, JoinKey], ...]
"""(name of a view's own join key, the request's join key), sorted by the first: the order of a serialized key."""
