"""The types in which a Delta table stores the columns of a result: Delta has fewer types than Arrow."""

import pyarrow as pa
import pyarrow.types as pt

from scoring.errors import BatchRequestError

FITTING = (
    pt.is_boolean, pt.is_signed_integer, pt.is_float32, pt.is_float64, pt.is_string, pt.is_large_string, pt.is_binary,
    pt.is_large_binary, pt.is_date32, pt.is_decimal128, pt.is_null,
)  # fmt: skip
CONVERTED = {
    pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20),
    pa.float16(): pa.float32(), pa.date64(): pa.date32(), pa.string_view(): pa.string(), pa.binary_view(): pa.binary(),
}  # fmt: skip


def stored_schema(request: str, schema: pa.Schema, partition_column: str) -> pa.Schema:
    """Return the columns of a result with the types in which a Delta table stores them.

    Columns without any value (of type null) are omitted: they read as null.

    Raises:
        BatchRequestError: a Delta table has no such type, or a column has the name of the partition column.
    """
    fields = []
    for field in schema:
        stored = _stored(field.type)
        if stored is None:
            problem = f"a Delta table has no type for {field.type}: convert the column, or leave it out."
            raise BatchRequestError(request, problem, column=field.name)
        if field.name.casefold() == partition_column:
            problem = "the scores table has a column of this name: rename it."
            raise BatchRequestError(request, problem, column=field.name)
        if not pt.is_null(stored):
            fields.append(pa.field(field.name, stored))
    return pa.schema(fields)


def cast(request: str, table: pa.Table, stored: pa.Schema) -> pa.Table:
    """Return rows of a result with the types of `stored_schema`.

    Raises:
        BatchRequestError: a value does not fit.
    """
    columns = []
    for field in stored:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowInvalid:
            problem = f"a {table[field.name].type} value does not fit {field.type}, the type in a table: convert it."
            raise BatchRequestError(request, problem, column=field.name) from None
    return pa.table(columns, schema=stored)


def _stored(found: pa.DataType) -> pa.DataType | None:
    """Return the type that represents all values of a type in a Delta table; None if there is none."""
    if pt.is_dictionary(found):
        return _stored(found.value_type)
    if pt.is_timestamp(found):
        return pa.timestamp("us", "UTC")  # without a zone, it is UTC, as in a request
    if pt.is_list(found) or pt.is_large_list(found) or pt.is_fixed_size_list(found):
        item = _stored(found.value_type)
        return None if item is None or pt.is_null(item) else pa.list_(item)
    return found if any(fits(found) for fits in FITTING) else CONVERTED.get(found)
