"""Builds DuckDB SQL that reads a column of a Parquet file as the type that its view declares.

A feature's value that can't be represented in a numeric type (NaN, a fraction or an integer out of range in an Int64)
becomes null; strings that are not numbers, and types without a conversion, are errors. A key's value that does not fit
the declared type becomes null, and matches nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.types as pt
from feast import FeatureView, ValueType
from feast.infra.offline_stores.file_source import FileSource

Use = Literal["key", "feature", "event_timestamp", "created_timestamp"]

INTEGERS = {ValueType.INT32: "INTEGER", ValueType.INT64: "BIGINT"}
FLOATS = {ValueType.FLOAT: "FLOAT", ValueType.DOUBLE: "DOUBLE"}
LISTS = {ValueType.INT64_LIST: "BIGINT[]", ValueType.FLOAT_LIST: "FLOAT[]", ValueType.DOUBLE_LIST: "DOUBLE[]"}
# Only the canonical spelling of an integer: the strings 0001 and 1 differ, and can't both be the key 1.
INTEGER_KEY = "'0|-?[1-9][0-9]*'"
MAX_DECIMAL_DIGITS = 38  # of DuckDB
# A partition folder's value has no type, and writers pad it with zeros (month=05).
INTEGER = "'\\s*[+-]?[0-9]+\\s*'"


class NoConversion(ValueError):
    """Values of the file's type can't be read as the declared one."""


class Column(msgspec.Struct, frozen=True):
    """A column that a query needs from a source."""

    name: str
    """Its name in the files."""
    use: Use
    declared: Any = None
    """Feast's type, as the view declares it. None if it is unknown; the column then keeps the files' type."""

    @property
    def is_needed(self) -> bool:
        """Return whether a row can't be joined without this column."""
        return self.use in ("key", "event_timestamp")

    @property
    def type_name(self) -> str:
        """Return the required type, for messages."""
        return "a timestamp" if self.use.endswith("timestamp") else str(self.declared)


class Expression(msgspec.Struct, frozen=True):
    """A value in SQL, and the condition under which it can't be read; None if it can always be read."""

    value: str
    bad: str | None = None


def read_columns(
    keys: Iterable[str], features: Iterable[str], event: str, created: str | None, types: Mapping[str, Any]
) -> list[Column]:
    """Return the columns that a query reads: their names in the files, with the Feast types under these names."""
    columns = [Column(event, "event_timestamp"), *([Column(created, "created_timestamp")] if created else [])]
    columns += [Column(name, "key", types.get(name)) for name in keys]
    return columns + [Column(name, "feature", types.get(name)) for name in features]


def declared_types(view: FeatureView, source: FileSource) -> dict[str, Any]:
    """Return column in the source's files → Feast's type, for the view's join keys and features."""
    original = {new: old for old, new in source.field_mapping.items()}
    fields = (*view.entity_columns, *view.features)
    return {original.get(field.name, field.name): field.dtype for field in fields}


def expression(column: Column, found: pa.DataType, sql: str, *, in_path: bool = False) -> Expression:
    """Return the expression that reads a column of a file.

    Args:
        column: the column, with its use and its declared type.
        found: its type in the file.
        sql: the column in SQL.
        in_path: whether the value comes from a partition folder's name, as a string.

    Raises:
        NoConversion: there is no such conversion.
    """
    if pt.is_dictionary(found):
        found = found.value_type
    declared = None if column.declared is None else column.declared.to_value_type()
    if column.use.endswith("timestamp") or declared is ValueType.UNIX_TIMESTAMP:
        return _timestamp(found, sql)
    if pt.is_decimal(found) and found.precision > MAX_DECIMAL_DIGITS:
        raise NoConversion
    is_key = column.use == "key"
    is_string = declared is ValueType.STRING or (declared is ValueType.UUID and is_key)
    if pt.is_null(found):
        return Expression(f"CAST(NULL AS {sql_type(column)})" if sql_type(column) else "NULL")
    if is_bytes(found) and (is_string or declared in INTEGERS or declared in FLOATS):
        # Older writers store strings without marking them as strings.
        text = expression(column, pa.string(), f"TRY(decode({sql}))", in_path=in_path)
        bad = f"{sql} IS NOT NULL AND TRY(decode({sql})) IS NULL"
        return Expression(text.value, None if is_key else f"{bad} OR {text.bad}" if text.bad else bad)
    if declared in INTEGERS:
        form = INTEGER if in_path or not is_key else INTEGER_KEY
        read = _integer(found, sql, INTEGERS[declared], form, is_key=is_key)
    elif declared in FLOATS:
        read = _float(found, sql, FLOATS[declared])
    elif declared is ValueType.BOOL:
        read = _boolean(found, sql)
    elif is_string:
        read = _string(found, sql, is_key=is_key)
    elif declared in LISTS and _is_list_of(LISTS[declared], found):
        read = Expression(f"CAST({sql} AS {LISTS[declared]})")
    elif declared is ValueType.BYTES and is_text(found):
        read = Expression(f"encode({sql})")
    else:
        read = Expression(sql)
    return read


def sql_type(column: Column) -> str | None:
    """Return DuckDB's name of the type that `expression` returns; None if that is the files' own type."""
    if column.use.endswith("timestamp"):
        return "TIMESTAMPTZ"
    if column.declared is None:
        return None
    names = {**INTEGERS, **FLOATS, ValueType.BOOL: "BOOLEAN", ValueType.STRING: "VARCHAR"}
    names[ValueType.UNIX_TIMESTAMP] = "TIMESTAMPTZ"
    if column.use == "key":
        names[ValueType.UUID] = "VARCHAR"
    return names.get(column.declared.to_value_type())


def common_type(types: Sequence[pa.DataType]) -> str | None:
    """Return DuckDB's name of a type that can represent the values of all these types; None if the types are equal.

    Raises:
        NoConversion: there is none.
    """
    different = {kind.value_type if pt.is_dictionary(kind) else kind for kind in types if not pt.is_null(kind)}
    if len(different) < 2:
        return None
    if all(pt.is_timestamp(kind) or pt.is_date(kind) for kind in different):
        return "TIMESTAMPTZ"
    try:
        schemas = [pa.schema([("column", kind)]) for kind in different]
        return _sql_name(pa.unify_schemas(schemas, promote_options="permissive").field(0).type)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise NoConversion from None


def have_common_type(one: pa.DataType | None, other: pa.DataType | None) -> bool:
    """Return whether there is a common type; None is the type of a file without the column."""
    try:
        common_type([each for each in (one, other) if each is not None])
    except NoConversion:
        return False
    return True


def is_bytes(found: pa.DataType) -> bool:
    """Return whether it is a binary type."""
    return bool(
        pt.is_binary(found) or pt.is_large_binary(found) or pt.is_binary_view(found) or pt.is_fixed_size_binary(found)
    )


def is_text(found: pa.DataType) -> bool:
    """Return whether it is a string type."""
    return bool(pt.is_string(found) or pt.is_large_string(found) or pt.is_string_view(found))


def _is_list_of(name: str, found: pa.DataType) -> bool:
    """Return whether it is a list of numbers that this DuckDB type represents, or whose nearest number it has."""
    if not (pt.is_list(found) or pt.is_large_list(found) or pt.is_fixed_size_list(found)):
        return False
    item = found.value_type
    integer = pt.is_integer(item) and (name != "BIGINT[]" or item != pa.uint64())
    return bool(integer or (name == "DOUBLE[]" and pt.is_floating(item)))


def _timestamp(found: pa.DataType, sql: str) -> Expression:
    value = f"CAST({sql} AS TIMESTAMPTZ)"
    if pt.is_timestamp(found) or pt.is_date(found) or pt.is_null(found):
        return Expression(value)
    if is_text(found):
        return Expression(f"TRY_{value}", f"{sql} IS NOT NULL AND TRY_{value} IS NULL")
    raise NoConversion


def _integer(found: pa.DataType, sql: str, name: str, form: str, *, is_key: bool) -> Expression:
    value = f"TRY_CAST({sql} AS {name})"
    if pt.is_integer(found):
        return Expression(value if _sql_name(found) != name else sql)
    if pt.is_floating(found):
        return Expression(f"CASE WHEN {value} = {sql} THEN {value} END")
    if pt.is_decimal(found):
        return Expression(f"CASE WHEN round({sql}, 0) = {sql} THEN {value} END")
    if is_text(found):
        fits = f"regexp_full_match({sql}, {form})"
        value = f"CASE WHEN {fits} THEN {value} END"
        return Expression(value, None if is_key else f"{sql} IS NOT NULL AND {value} IS NULL")
    if pt.is_boolean(found) and not is_key:
        return Expression(f"CAST({sql} AS {name})")
    raise NoConversion


def _float(found: pa.DataType, sql: str, name: str) -> Expression:
    if pt.is_float64(found) or (pt.is_float32(found) and name == "FLOAT"):
        # Values are rounded to a Float32 only when they are stored, because a cast would fail here if one does not fit.
        return Expression(sql)
    if pt.is_integer(found) or pt.is_floating(found) or pt.is_decimal(found) or pt.is_boolean(found):
        return Expression(f"CAST({sql} AS DOUBLE)")
    if is_text(found):
        value = f"TRY_CAST({sql} AS DOUBLE)"
        return Expression(value, f"{sql} IS NOT NULL AND {value} IS NULL")
    raise NoConversion


def _boolean(found: pa.DataType, sql: str) -> Expression:
    if pt.is_boolean(found):
        return Expression(sql)
    if pt.is_integer(found) or pt.is_floating(found):
        return Expression(f"CASE {sql} WHEN 0 THEN false WHEN 1 THEN true END")
    if is_text(found):
        value = f"CASE lower({sql}) WHEN 'true' THEN true WHEN 'false' THEN false END"
        return Expression(value, f"{sql} IS NOT NULL AND {value} IS NULL")
    raise NoConversion


def _string(found: pa.DataType, sql: str, *, is_key: bool) -> Expression:
    if is_text(found):
        return Expression(sql)
    if pt.is_nested(found) or is_bytes(found) or pt.is_duration(found):
        raise NoConversion
    value = f"CAST({sql} AS VARCHAR)"
    if pt.is_floating(found) and is_key:
        # As in a batch request: pandas writes integers beside nulls as floats.
        value = f"CAST({_integer(found, sql, 'BIGINT', INTEGER_KEY, is_key=True).value} AS VARCHAR)"
    elif pt.is_floating(found):
        # DuckDB 2.0 evaluates isnan by a file's statistics, which omit NaN.
        value = f"CASE WHEN isfinite({sql}) OR isinf({sql}) THEN {value} END"
    return Expression(value)


def _sql_name(kind: pa.DataType) -> str | None:
    names = {
        pa.int8(): "TINYINT", pa.int16(): "SMALLINT", pa.int32(): "INTEGER", pa.int64(): "BIGINT",
        pa.uint8(): "UTINYINT", pa.uint16(): "USMALLINT", pa.uint32(): "UINTEGER", pa.uint64(): "UBIGINT",
        pa.float32(): "FLOAT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN", pa.string(): "VARCHAR",
        pa.large_string(): "VARCHAR", pa.binary(): "BLOB", pa.large_binary(): "BLOB",
    }  # fmt: skip
    if pt.is_list(kind) or pt.is_large_list(kind):
        item = _sql_name(kind.value_type)
        return None if item is None else f"{item}[]"
    return names.get(kind)
