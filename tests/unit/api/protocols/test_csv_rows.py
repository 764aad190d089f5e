"""Requests in CSV become the same columns as requests in JSON."""

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from api.errors import InvalidRequest, MalformedBody
from api.model.request_schema import RequestSchema
from api.protocols.csv_rows import decode_csv
from scoring.feast_plugins.join_keys import JoinKey
from tests.support.fakes import features

INPUTS = {"n": pa.int64(), "x": pa.float64(), "flag": pa.bool_(), "note": pa.string(), "at": pa.timestamp("us", "UTC")}
FORM = RequestSchema("m/1", features(JoinKey("id", "int64"), request_inputs=INPUTS), 1000)
KEYS = RequestSchema("m/1", features(JoinKey("id", "int64"), JoinKey("name", "string")), 1000)


def decode(text: str | bytes, schema: RequestSchema = KEYS, max_rows: int = 3) -> dict[str, list[Any]]:
    body = text.encode() if isinstance(text, str) else text
    return decode_csv(schema, "r", body, max_rows).entity_rows


def test_each_cell_is_read_as_the_declared_type_of_its_column() -> None:
    lines = (
        "at,x,id,note,flag,n",
        "2026-01-31T12:00:00Z,1e2,1,007,True,1.0",
        ",,-2,,false,",
        "2026-01-31T12:00:00.5+01:00,0.1,3,null,true,9",
    )
    noon = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    assert decode("\r\n".join(lines), FORM) == {
        "id": [1, -2, 3],
        "n": [1, None, 9],
        "x": [100.0, None, 0.1],
        "flag": [True, False, True],
        "note": ["007", None, "null"],
        "at": [noon, None, noon - dt.timedelta(minutes=59, seconds=59.5)],
    }


@pytest.mark.parametrize(
    "text",
    [
        '\ufeffid,name\n1,"a,""b"""\n2,c',
        'name,id\r\n"a,""b""",1\r\nc,2\r\n\r\n\n',
        '"id","name"\n"1","a,""b"""\n"2","c"\n',
    ],
)
def test_a_byte_order_mark_quotes_and_line_ends_make_no_difference(text: str) -> None:
    assert decode(text) == {"id": [1, 2], "name": ['a,"b"', "c"]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id\n1\n", "Missing column 'name'"),
        ("", "Missing column 'id'"),
        ("id;name\n1;a\n", "Unknown column 'id;name'"),
        ("id,name,id\n1,a,2\n", "Duplicate column 'id'"),
        ("id,name\n", "Expected 1 to 3 rows, got 0"),
        ("id,name\n" + "1,a\n" * 4, "Expected 1 to 3 rows, got more"),
        ("id,name\n1,a\n2\n", "Line 3 has 1 cells, and the header has 2"),
        ("id,name\n1,a,b\n", "Line 2 has 3 cells, and the header has 2"),
        ("id,name\n1,a\n\n2,b\n", "Line 3 has 0 cells"),
        ("id,name\n1,a\n\n\n\n2,b\n", "Expected 1 to 3 rows, got more"),
        ("id,name\n,a\n", "Column 'id', line 2: Expected `integer`, got `null`"),
        ("id,name\n1,\n", "Column 'name', line 2: Expected `string`, got `null`"),
        ('id,name\n1,"a\nb"\n1.0,c\n', "Column 'id', line 4: Expected `integer`"),
        *(
            (f"id,name\n1,a\n{cell},b\n", "Column 'id', line 3: Expected `integer`")
            for cell in ("x", " 1x", "007", "+1", "1.5", "NaN", "true", "null", "1_0", '"1,0"', str(2**63), "[1]")
        ),
    ],
)
def test_an_error_names_the_line_and_the_column(text: str, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(text)
    assert str(refused.value).startswith(problem)


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "Infinity", "1e999", "0x10", "1,5", "one"])
def test_a_number_is_written_as_in_json(cell: str) -> None:
    with pytest.raises(InvalidRequest, match="Column 'x', line 2: Expected"):
        decode(f'id,n,x,flag,note,at\n1,,"{cell}",,,\n', FORM)


@pytest.mark.parametrize("body", [b"id,name\n1,\xff\n", 'id,name\n1,"a\n', 'id,name\n1,"a"b\n', b"\xff\xfei\x00d\x00"])
def test_a_body_that_is_not_csv_is_malformed(body: str | bytes) -> None:
    with pytest.raises(MalformedBody, match="not valid CSV"):
        decode(body)
