"""Encodes rows for online stores and checks the result against Feast's."""

import logging
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, ValueType
from feast.utils import _convert_arrow_to_proto, _get_feature_view_vector_field_metadata

from scoring.feast_plugins.encoded_rows import EncodedRows
from scoring.feast_plugins.entity_keys import entity_keys
from scoring.feast_plugins.join_keys import KEY_TYPES, NO_ENTITY, JoinKey, Keys
from scoring.feast_plugins.online_writers import Writer
from scoring.feast_plugins.value_encoder import (
    Encode,
    UnsupportedEncoding,
    encoder,
    is_binary,
    is_integer,
    is_string,
    nulls,
    stored_text,
    to_microseconds,
)

logger = logging.getLogger(__name__)


class RowEncoding(msgspec.Struct, frozen=True):
    """The encoding of one view's columns for an online store."""

    view: Any
    keys: Keys
    encoders: dict[str, tuple[ValueType, Encode]]
    """Feature → its declared type and its encoder."""

    def encode(self, rows: pa.RecordBatch) -> EncodedRows:
        """Encode rows of the view's columns.

        Raises:
            UnsupportedEncoding: it is unknown how Feast would write some of the values.
        """
        source = self.view.batch_source
        created = rows[source.created_timestamp_column] if source.created_timestamp_column else None
        encoded = {name: encode(rows[name]) for name, (_, encode) in self.encoders.items()}
        return EncodedRows(
            keys=entity_keys(self.keys, {name: _key_values(rows[name], key) for name, key in self.keys}),
            event_us=to_microseconds(rows[source.timestamp_field]),
            created_us=None if created is None else _nullable_microseconds(created),
            values=encoded,
            texts=lambda: {
                name: stored_text(declared, encoded[name], rows[name]) for name, (declared, _) in self.encoders.items()
            },
        )

    def as_feast(self, rows: pa.RecordBatch) -> Any:
        """Convert the same rows with Feast's own code, for the writers of its stores."""
        types = {column.name: column.dtype.to_value_type() for column in self.view.entity_columns}
        return _convert_arrow_to_proto(rows, self.view, types)


def row_encoding(view: FeatureView, schema: pa.Schema) -> RowEncoding | None:
    """Return the encoding of the view's columns for the types of its source; None if only Feast can encode a column."""
    vector = _get_feature_view_vector_field_metadata(view)
    if vector is not None and vector.vector_index:
        return None
    sources = {field.name: field.type for field in schema}
    encoders: dict[str, tuple[ValueType, Encode]] = {}
    for feature in view.features:
        declared = feature.dtype.to_value_type()
        encode = encoder(declared, sources[feature.name]) if feature.name in sources else None
        if encode is None:
            return None
        encoders[feature.name] = (declared, encode)
    keys = []
    for column in sorted(view.entity_columns, key=lambda each: each.name):
        kind, source = column.dtype.to_value_type(), sources.get(column.name)
        if kind.name not in KEY_TYPES or kind is ValueType.UUID or source is None:
            return None
        key = JoinKey(column.name, KEY_TYPES[kind.name])
        if not (is_string(source) if key.dtype == "string" else is_integer(source)):
            return None
        keys.append((key.name, key))
    return RowEncoding(view, tuple(keys), encoders) if keys else None


def _key_values(column: pa.Array, key: JoinKey) -> list[Any]:
    if column.null_count:
        raise UnsupportedEncoding("a join key is null")
    try:
        values: list[Any] = column.cast(key.arrow_type).to_pylist()
    except pa.ArrowInvalid:
        raise UnsupportedEncoding("a join key is out of its type's range") from None
    return values


def _nullable_microseconds(timestamps: pa.Array) -> np.ndarray:
    """Return microseconds since 1970, int64 (n,); NaT for null."""
    filled = pc.fill_null(timestamps, pa.scalar(0, timestamps.type)) if timestamps.null_count else timestamps
    return np.where(nulls(timestamps), np.iinfo(np.int64).min, to_microseconds(filled))


def matches_feast_layout(writer: Writer, columns: RowEncoding, schema: pa.Schema) -> bool:
    """Return whether rows of these columns, with the values most likely to differ, are encoded as Feast does."""
    try:
        rows = _samples(schema, columns)
        return writer.matches_feast(columns.encode(rows), columns.as_feast(rows))
    except Exception as error:  # Feast's functions have changed
        logger.warning("Checking how Feast writes feature view %r: %s", columns.view.name, error)
        return False


SAMPLES: list[tuple[Any, list[Any]]] = [
    (pa.types.is_boolean, [True, False]),
    (pa.types.is_signed_integer, [0, 1, -1, 127, -128]),
    (pa.types.is_unsigned_integer, [0, 1, 127, 128, 255]),
    (pa.types.is_floating, [0.0, -0.0, 1.5, -1e-300, float("inf"), float("nan")]),
    (is_string, ["", "é", "x" * 200]),
    (is_binary, [b"", b"\0\xff", b"x" * 200]),
    (pa.types.is_timestamp, [0, 1, -1, 1_700_000_000]),
]
"""Values of each kind of column with different encodings; nulls are added."""


def _samples(schema: pa.Schema, columns: RowEncoding) -> pa.RecordBatch:
    source = columns.view.batch_source
    keys = {name for name, _ in columns.keys}
    count = 12
    arrays = []
    for field in schema:
        if field.name == NO_ENTITY:
            values: list[Any] = [""]
        elif field.name in keys:
            values = [str(row) * row if is_string(field.type) else row for row in range(count)]
        elif field.name in (source.timestamp_field, source.created_timestamp_column):
            values = [1_700_000_000 + 3600 * row for row in range(count)]
        else:
            values = _sample_values(field.type)
        arrays.append(pa.array([values[row % len(values)] for row in range(count)], field.type))
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)


def _sample_values(kind: pa.DataType) -> list[Any]:
    if pa.types.is_list(kind):
        return [[value for value in _sample_values(kind.value_type) if value is not None], [], None]
    return [*next((values for fits, values in SAMPLES if fits(kind)), []), None]
