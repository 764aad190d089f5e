"""The forms of a request: entity rows, columns as members, and columns as other formats than JSON have them."""

import json
from typing import Any

import jsonschema_rs
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import InvalidRequest
from api.model.request_schema import RequestSchema
from scoring.errors import ModelRefused
from scoring.feast_plugins.join_keys import JoinKey
from tests.support.fakes import features

KEYS = (JoinKey("customer_id", "string"), JoinKey("merchant_id", "int32"))
CONTEXT = {"customer_id": "a", "merchant_ids": [1, 2], "amount": None}
ROWS = [{"customer_id": "a", "merchant_id": 1, "amount": 1}]


@pytest.fixture
def schema() -> RequestSchema:
    return RequestSchema("m/1", features(*KEYS, request_inputs={"amount": pa.float64()}), 3)


def test_columns_have_the_values_of_the_same_request_in_json(schema: RequestSchema) -> None:
    in_json = schema.decode(
        b'{"request_id": "r", "entity_rows": [{"customer_id": "a", "merchant_id": 1, "amount": 2},'
        b' {"customer_id": "b", "merchant_id": 2, "amount": null}]}'
    )
    columns = {"amount": [2, None], "customer_id": ["a", "b"], "merchant_id": [1, 2]}

    assert schema.from_columns("r", columns, 3) == in_json


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"customer_id": ["a"], "merchant_id": [1]}, "Missing column 'amount'"),
        ({"customer_id": ["a"], "merchant_id": [1], "amount": [1], "x": [1]}, "Unknown column 'x'"),
        (
            {"customer_id": ["a"], "merchant_id": [1, 2], "amount": [1]},
            "Column 'merchant_id' has 2 values, and 'customer_id' has 1",
        ),
        ({"customer_id": [], "merchant_id": [], "amount": []}, "Expected 1 to 3 rows, got 0"),
        ({"customer_id": ["a"] * 4, "merchant_id": [1] * 4, "amount": [1] * 4}, "Expected 1 to 3 rows, got 4"),
        (
            {"customer_id": ["a", "b"], "merchant_id": [1, None], "amount": [1, 1]},
            "Column 'merchant_id', row 1: Expected `integer`, got `null`",
        ),
        (
            {"customer_id": ["a", ""], "merchant_id": [1, 2], "amount": [1, 1]},
            "Column 'customer_id', row 1: Expected `string` of length >= 1",
        ),
        (
            {"customer_id": ["a"], "merchant_id": [2**31], "amount": [1]},
            "Column 'merchant_id', row 0: Expected `integer` <= 2147483647",
        ),
        *(
            (
                {"customer_id": ["a", "b"], "merchant_id": [1, 2], "amount": [1, value]},
                "Column 'amount', row 1: Expected a finite number",
            )
            for value in (float("nan"), float("-inf"))
        ),
    ],
)
def test_an_invalid_column_is_named_with_its_row(schema: RequestSchema, columns: dict[str, list], problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        schema.from_columns("r", columns, 3)

    expected = "Expected columns: `customer_id`, `merchant_id`, `amount`."
    assert str(refused.value) == f"{problem}. {expected}"


@given(
    rows=st.integers(1, 3),
    lists=st.sets(st.sampled_from(["customer_id", "merchant_id", "amount", "at", "any"]), min_size=1),
    top=st.none() | st.integers(1, 5),
    data=st.data(),
)
def test_columns_as_members_are_the_same_request_as_entity_rows(
    rows: int, lists: set[str], top: int | None, data: st.DataObject
) -> None:
    values = {
        "customer_id": st.text('aé"\\', min_size=1),
        "merchant_id": st.integers(-(2**31), 2**31 - 1),
        "amount": st.none() | st.integers(0, 3) | st.just(2.0),
        "at": st.none() | st.just("2026-01-31T12:00:00Z"),
        "any": st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text("x'\""),
    }
    inputs: dict[str, Any] = {"amount": pa.int64(), "at": pa.timestamp("ns"), "any": None}
    schema = RequestSchema("m/1", features(*KEYS, request_inputs=inputs), 3)
    columns = {
        name: data.draw(st.lists(each, min_size=rows, max_size=rows)) if name in lists else [data.draw(each)] * rows
        for name, each in values.items()
    }
    request: dict[str, Any] = {"request_id": "r"} | ({} if top is None else {"top": top})
    members = {
        f"{name}s" if name in lists else name: each if name in lists else each[0] for name, each in columns.items()
    }
    by_row = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    decoded = schema.decode(json.dumps(request | members).encode())

    assert decoded == schema.decode(json.dumps(request | {"entity_rows": by_row}).encode())
    assert (decoded.rows, decoded.top) == (rows, top)
    assert fits_schema(schema, request | members)
    assert fits_schema(schema, request | {"entity_rows": by_row})


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({}, "Object contains neither `customer_ids`, `merchant_ids`, `amounts` nor `entity_rows`"),
        ({"customer_id": "a", "merchant_id": 1, "amount": 1}, "Object contains no list (`customer_ids`, "),
        ({"customer_ids": ["a"], "amount": None}, "Object contains no `merchant_id` or `merchant_ids`"),
        (CONTEXT | {"amounts": [1]}, "Object contains both `amount` and `amounts`"),
        (CONTEXT | {"entity_rows": [{}]}, "Object missing required field `customer_id` - at `$.entity_rows[0]`"),
        (CONTEXT | {"entity_rows": ROWS}, "Object contains both `customer_id` and `entity_rows`"),
        ({"amount": 1, "entity_rows": ROWS}, "Object contains both `amount` and `entity_rows`"),
        (CONTEXT | {"merchant_ids": []}, "Expected `array` of length >= 1 - at `$.merchant_ids`"),
        (CONTEXT | {"merchant_ids": [1] * 4}, "Expected `array` of length <= 3 - at `$.merchant_ids`"),
        (CONTEXT | {"merchant_ids": [1, None]}, "Expected `integer`, got `null` - at `$.merchant_ids[1]`"),
        (CONTEXT | {"merchant_ids": 1}, "Expected `array`, got `integer` - at `$.merchant_ids`"),
        (CONTEXT | {"customer_id": ["a"]}, "Expected `string`, got `array` - at `$.customer_id`"),
        (CONTEXT | {"customer_id": ""}, "Expected `string` of length >= 1 - at `$.customer_id`"),
        (CONTEXT | {"more": 1}, "Object contains unknown field `more`"),
        (CONTEXT | {"top": "1"}, "Expected `integer`, got `string` - at `$.top`"),
    ],
)
def test_a_wrong_member_is_named_and_the_schema_refuses_it_too(
    schema: RequestSchema, members: dict[str, Any], problem: str
) -> None:
    request = {"request_id": "r"} | members
    with pytest.raises(InvalidRequest) as refused:
        schema.decode(json.dumps(request).encode())

    assert str(refused.value).startswith(problem)
    assert not fits_schema(schema, request)


def test_lists_have_the_same_length(schema: RequestSchema) -> None:
    body = {"request_id": "r", "customer_ids": ["a", "b"], "merchant_ids": [1, 2, 3], "amount": 1}
    with pytest.raises(InvalidRequest, match=r"^`customer_ids` has 2 values, and `merchant_ids` has 3\. Expected"):
        schema.decode(json.dumps(body).encode())


@pytest.mark.parametrize("twice", ['"amount": 1', '"customer_id": "a"', '"top": 1', '"merchant_ids": [1]'])
def test_a_duplicate_member_is_refused(schema: RequestSchema, twice: str) -> None:
    body = f'{{"request_id": "r", "customer_id": "a", "merchant_ids": [1], "amount": 2, "top": 1, {twice}}}'
    with pytest.raises(InvalidRequest, match=r"^Duplicate JSON member "):
        schema.decode(body.encode())


@pytest.mark.parametrize(
    ("keys", "accepted", "refused"),
    [
        (("top", "int64"), {"tops": [1]}, {"top": 1}),
        (("request_id", "string"), {"request_ids": ["a"]}, {}),
        (("entity_row", "int64"), {"entity_row": 1}, {"entity_rows": [1]}),
    ],
)
def test_a_column_with_the_name_of_a_member_has_only_the_other_form(
    keys: tuple[str, Any], accepted: dict[str, Any], refused: dict[str, Any]
) -> None:
    schema = RequestSchema("m/1", features(JoinKey(*keys), JoinKey("item_id", "int64")), 3)
    column = keys[0]

    assert schema.decode(json.dumps({"request_id": "r", "item_ids": [7]} | accepted).encode()).entity_rows == {
        "item_id": [7],
        column: next(iter(accepted.values())) if isinstance(next(iter(accepted.values())), list) else [1],
    }
    assert schema.decode(json.dumps(schema.examples.request()).encode()).rows == 2
    with pytest.raises(InvalidRequest):
        schema.decode(json.dumps({"request_id": "r", "item_ids": [7]} | refused).encode())


def test_without_a_possible_list_there_are_only_entity_rows() -> None:
    schema = RequestSchema("m/1", features(JoinKey("entity_row", "int64"), JoinKey("request_id", "int64")), 3)

    assert schema.decode(b'{"request_id": "r", "request_ids": [1], "entity_row": 1}').rows == 1

    schema = RequestSchema("m/1", features(JoinKey("entity_row", "int64")), 3)

    with pytest.raises(InvalidRequest, match=r"^Object contains unknown field `entity_row`\. "):
        schema.decode(b'{"request_id": "r", "entity_row": 1}')


OVERRIDABLE = {"price": pa.float32(), "sold": pa.int64(), "tier": pa.string()}


@pytest.fixture
def overriding() -> RequestSchema:
    return RequestSchema("m/1", features(JoinKey("item_id", "int64"), overridable=OVERRIDABLE), 3)


@given(data=st.data(), rows=st.integers(1, 3))
def test_the_override_of_an_entity_precedes_that_of_the_request(data: st.DataObject, rows: int) -> None:
    schema = RequestSchema("m/1", features(JoinKey("item_id", "int64"), overridable=OVERRIDABLE), 3)
    values = {"price": st.integers(0, 9) | st.just(0.5), "sold": st.integers(0, 9) | st.just(2.0), "tier": st.text()}
    of_all = data.draw(st.fixed_dictionaries({}, optional=values))
    each = st.none() | st.fixed_dictionaries({}, optional=values)
    of_each = data.draw(st.lists(each, min_size=rows, max_size=rows))
    entities = [{"item_id": row} | ({} if own is None else {"overrides": own}) for row, own in enumerate(of_each)]
    request = {"request_id": "r", "entity_rows": entities, "overrides": of_all}

    decoded = schema.decode(json.dumps(request).encode())

    merged = [of_all | (own or {}) for own in of_each]
    assert decoded.entity_rows == {"item_id": list(range(rows))} | {
        name: [each.get(name) for each in merged] for name in OVERRIDABLE
    }
    assert all(type(value) in {int, type(None)} for value in decoded.entity_rows["sold"])
    assert schema.overrides(decoded) == [name for name in OVERRIDABLE if any(name in each for each in merged)]
    assert fits_schema(schema, request)
    given_columns = {name: values for name, values in decoded.entity_rows.items() if set(values) != {None}}
    assert schema.from_columns("r", given_columns, 3) == decoded
    if not any(of_each):
        by_list = {"request_id": "r", "item_ids": list(range(rows)), "overrides": of_all}
        assert schema.decode(json.dumps(by_list).encode()) == decoded


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ('{"cost": 1}', "Object contains unknown field `cost` - at `$.overrides`"),
        ('{"item_id": 1}', "Object contains unknown field `item_id` - at `$.overrides`"),
        ('{"price": null}', "Expected `number`, got `null` - at `$.overrides.price`"),
        ('{"price": "1"}', "Expected `number`, got `string` - at `$.overrides.price`"),
        ('{"price": 1e39}', "Expected `number` <= "),
        ('{"sold": 1.5}', "Expected `integer`"),
        ('{"sold": true}', "Expected `integer`, got `boolean` - at `$.overrides.sold`"),
        ('{"tier": 1}', "Expected `string`, got `integer` - at `$.overrides.tier`"),
        ('{"price": 1, "price": 1}', "Duplicate JSON member 'price'"),
        ("null", "Expected `object`, got `null` - at `$.overrides`"),
    ],
)
def test_an_override_that_is_not_allowed_is_named_with_those_that_are(
    overriding: RequestSchema, overrides: str, problem: str
) -> None:
    for body in (
        f'{{"request_id": "r", "item_ids": [1], "overrides": {overrides}}}',
        f'{{"request_id": "r", "entity_rows": [{{"item_id": 1, "overrides": {overrides}}}]}}',
    ):
        with pytest.raises(InvalidRequest) as refused:
            overriding.decode(body.encode())
        in_row = problem.replace("$.overrides", "$.entity_rows[0].overrides")
        assert str(refused.value).startswith(in_row if "entity_rows" in body else problem)
        assert str(refused.value).endswith(" Optional: `top`, `overrides` (an object with `price`, `sold`, `tier`).")
    with pytest.raises(InvalidRequest) as refused:
        overriding.decode_lines("r", f'{{"item_id": 1, "overrides": {overrides}}}'.encode(), 3)
    members = " Expected members: `item_id`. Optional: `overrides` (an object with `price`, `sold`, `tier`)."
    assert str(refused.value).startswith(f"Line 1: {problem}")
    assert str(refused.value).endswith(members)


def test_a_version_without_overridable_features_has_no_member_overrides(schema: RequestSchema) -> None:
    with pytest.raises(InvalidRequest, match=r"^Object contains unknown field `overrides`\. Expected .*: `top`\.$"):
        schema.decode(json.dumps({"request_id": "r", "overrides": {}} | CONTEXT).encode())


def test_no_column_is_called_overrides_beside_overridable_features() -> None:
    RequestSchema("m/1", features(JoinKey("overrides", "int64")), 3)
    with pytest.raises(ModelRefused, match="its request column 'overrides' has a reserved name"):
        RequestSchema("m/1", features(JoinKey("overrides", "int64"), overridable=OVERRIDABLE), 3)


def fits_schema(schema: RequestSchema, request: dict[str, Any]) -> bool:
    """Return whether the schema in the OpenAPI document accepts a request."""
    _, schemas = msgspec.json.schema_components([schema.body_type], ref_template="#/$defs/{name}")
    schema.members.complete(schemas["Request"])
    return jsonschema_rs.is_valid({"$ref": "#/$defs/Request", "$defs": schemas}, request)
