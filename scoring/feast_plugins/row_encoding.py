"""How the rows of one feature view become what online stores keep, and whether Feast would make the same of them."""

import logging
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, ValueType
from feast.utils import _convert_arrow_to_proto, _get_feature_view_vector_field_metadata

from scoring.feast_plugins.entity_keys import entity_keys
from scoring.feast_plugins.join_keys import KEY_TYPES, JoinKey
from scoring.feast_plugins.online_writers import EncodedRows, Writer
from scoring.feast_plugins.value_encoder import Encode, UnsupportedEncoding, encoder, stored_text, to_microseconds

logger = logging.getLogger(__name__)


class RowEncoding(msgspec.Struct, frozen=True):
    """How the columns of one view become what an online store keeps."""

    view: Any
    keys: tuple[JoinKey, ...]
    """In the order of the serialized key: by name."""
    encoders: dict[str, tuple[ValueType, Encode]]
    """Feature → its declared type, and what encodes it."""

    def encode(self, rows: pa.RecordBatch) -> EncodedRows:
        """Encode rows of the view's columns.

        Raises:
            UnsupportedEncoding: they hold something of which it is not known how Feast would write it.
        """
        source = self.view.batch_source
        created = rows[source.created_timestamp_column] if source.created_timestamp_column else None
        encoded = {name: encode(rows[name]) for name, (_, encode) in self.encoders.items()}
        return EncodedRows(
            keys=entity_keys(tuple((key.name, key) for key in self.keys), self._key_values(rows)),
            moments=to_microseconds(rows[source.timestamp_field]),
            created=None if created is None else _with_absent(created),
            values=encoded,
            texts=lambda: {
                name: stored_text(declared, encoded[name], rows[name]) for name, (declared, _) in self.encoders.items()
            },
        )

    def as_feast(self, rows: pa.RecordBatch) -> Any:
        """The same rows as Feast's own code makes them, for the writers of its stores."""
        types = {column.name: column.dtype.to_value_type() for column in self.view.entity_columns}
        return _convert_arrow_to_proto(rows, self.view, types)

    def _key_values(self, rows: pa.RecordBatch) -> dict[str, list[Any]]:
        values = {}
        for key in self.keys:
            column = rows[key.name]
            if column.null_count:
                raise UnsupportedEncoding("a join key is null")
            try:
                values[key.name] = column.cast(key.arrow_type).to_pylist()
            except pa.ArrowInvalid:
                raise UnsupportedEncoding("a join key is out of its type's range") from None
        return values


def row_encoding(view: FeatureView, schema: pa.Schema) -> RowEncoding | None:
    """How to encode the view's columns as the source has them; None if there is one that only Feast's code can."""
    vector = _get_feature_view_vector_field_metadata(view)
    if vector is not None and vector.vector_index:
        return None
    encoders: dict[str, tuple[ValueType, Encode]] = {}
    for feature in view.features:
        declared, place = feature.dtype.to_value_type(), schema.get_field_index(feature.name)
        found = encoder(declared, schema.field(place).type) if place >= 0 else None
        if found is None:
            return None
        encoders[feature.name] = (declared, found)
    keys = []
    for column in sorted(view.entity_columns, key=lambda each: each.name):
        kind, place = KEY_TYPES.get(column.dtype.to_value_type().name), schema.get_field_index(column.name)
        key = JoinKey(column.name, kind) if kind and column.dtype.to_value_type() is not ValueType.UUID else None
        if key is None or place < 0 or not _is_alike(schema.field(place).type, key.arrow_type):
            return None
        keys.append(key)
    return RowEncoding(view, tuple(keys), encoders) if keys else None


def _is_alike(found: pa.DataType, declared: pa.DataType) -> bool:
    if pa.types.is_string(declared):
        return _is_text(found)
    return bool(pa.types.is_integer(found) and found != pa.uint64())


def _with_absent(moments: pa.Array) -> np.ndarray:
    """Microseconds since 1970, with numpy's "not a time" where null."""
    absent = np.asarray(moments.is_null().to_numpy(zero_copy_only=False))
    filled = to_microseconds(pc.fill_null(moments, pa.scalar(0, moments.type)) if moments.null_count else moments)
    return np.where(absent, np.iinfo(np.int64).min, filled)


def matches_feast_layout(writer: Writer, columns: RowEncoding, schema: pa.Schema) -> bool:
    """Whether rows of these columns, with the values that are most likely to differ, come out as Feast's own."""
    rows = _trying(schema, columns)
    try:
        return writer.matches_feast(columns.encode(rows), columns.as_feast(rows))
    except Exception as error:  # Feast's functions are not the ones known here any more
        logger.warning("Checking how Feast writes feature view %r: %s", columns.view.name, error)
        return False


# Values of each kind of column that are written in ways of their own; nulls are added.
TRIED: list[tuple[Any, list[Any]]] = [
    (pa.types.is_boolean, [True, False]),
    (pa.types.is_signed_integer, [0, 1, -1, 127, -128]),
    (pa.types.is_unsigned_integer, [0, 1, 127, 128, 255]),
    (pa.types.is_floating, [0.0, -0.0, 1.5, -1e-300, float("inf"), float("nan")]),
    (pa.types.is_string, ["", "é", "x" * 200]),
    (pa.types.is_large_string, ["", "é", "x" * 200]),
    (pa.types.is_binary, [b"", b"\0\xff", b"x" * 200]),
    (pa.types.is_large_binary, [b"", b"\0\xff", b"x" * 200]),
    (pa.types.is_timestamp, [0, 1, -1, 1_700_000_000]),
]


def _trying(schema: pa.Schema, columns: RowEncoding) -> pa.RecordBatch:
    source = columns.view.batch_source
    moments = (source.timestamp_field, source.created_timestamp_column)
    keys = [key.name for key in columns.keys]
    count = 12
    arrays = []
    for field in schema:
        if field.name in keys:
            values = [str(row) * row if _is_text(field.type) else row for row in range(count)]
        elif field.name in moments:
            values = [1_700_000_000 + 3600 * row for row in range(count)]
        else:
            values = _tried_values(field.type)
        arrays.append(pa.array([values[row % len(values)] for row in range(count)], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([pa.field(each.name, each.type) for each in schema]))


def _tried_values(kind: pa.DataType) -> list[Any]:
    if pa.types.is_list(kind):
        inner = [value for value in _tried_values(kind.value_type) if value is not None]
        return [inner, [], None]
    return [*next((values for fits, values in TRIED if fits(kind)), []), None]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
