"""Chooses encoding and codec for each column of a parquet file."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CODEC = "snappy"
# Four times pyarrow's default, which takes 4 % less time. A page ends after the batch that fills it.
VALUES_PER_WRITE = 4096


def encodings(first: pa.Table, constants: Collection[str] = ()) -> dict[str, Any]:
    """Return options of pyarrow's ParquetWriter for a file that begins with these rows.

    Strings and booleans get a dictionary. For floats, a dictionary takes most of the writing time and saves nothing,
    because values hardly repeat. Integers and timestamps are delta-encoded: ids, counts and times become smaller than
    in plain form, take less time to write, and less than half to read. Floats are compressed only if that shrinks the
    first rows by a third, because compression takes more than half of the time to write and to read them.

    Args:
        first: the first row group.
        constants: columns created by `constant`.
    """
    schema = first.schema
    repeating = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_boolean(field.type)]
    # A name with a dot could also be the path of a column inside another one, of any type.
    deltas = [field.name for field in schema if _is_integral(field.type) and "." not in field.name]
    incompressible = set(_incompressible(first))
    return {
        "use_dictionary": [*repeating, *constants],
        "column_encoding": dict.fromkeys(deltas, "DELTA_BINARY_PACKED"),
        "write_batch_size": VALUES_PER_WRITE,
        "compression": {leaf: "none" if leaf in incompressible else CODEC for leaf in _leaves(first)},
    }


def constant(value: str, rows: int) -> pa.DictionaryArray:
    """Return a column that repeats one string. Writing it takes a third of the time of a plain column."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), pa.array([value]))


def _is_integral(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind))


def _incompressible(first: pa.Table) -> Iterator[str]:
    codec = pa.Codec(CODEC)
    for field, column in zip(first.schema, first.columns, strict=True):
        if pa.types.is_floating(field.type) and "." not in field.name:
            # Drop nulls, because their bytes are undefined.
            values = column.combine_chunks().drop_null().to_numpy()
            if len(codec.compress(values)) * 3 > values.nbytes * 2 > 0:
                yield field.name


def _leaves(first: pa.Table) -> list[str]:
    """Return the paths of the file's columns for this schema. A column of lists or structs has one or more others."""
    file = pa.BufferOutputStream()
    pq.write_table(first.slice(0, 0), file)
    schema = pq.ParquetFile(file.getvalue()).schema
    return [schema.column(place).path for place in range(len(schema))]
