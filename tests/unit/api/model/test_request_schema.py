"""Requests in columns, as other formats than JSON have them."""

import pyarrow as pa
import pytest

from api.errors import InvalidRequest
from api.model.request_schema import RequestForm
from scoring.feast_plugins.join_keys import JoinKey
from tests.support.fakes import features


@pytest.fixture
def form() -> RequestForm:
    keys = (JoinKey("customer_id", "string"), JoinKey("merchant_id", "int32"))
    return RequestForm("m/1", features(*keys, request_inputs={"amount": pa.float64()}), 3)


def test_columns_have_the_values_of_the_same_request_in_json(form: RequestForm) -> None:
    in_json = form.decode(
        b'{"request_id": "r", "entity_rows": [{"customer_id": "a", "merchant_id": 1, "amount": 2},'
        b' {"customer_id": "b", "merchant_id": 2, "amount": null}]}'
    )
    columns = {"amount": [2, None], "customer_id": ["a", "b"], "merchant_id": [1, 2]}

    assert form.from_columns("r", columns, 3) == in_json


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
    ],
)
def test_an_invalid_column_is_named_with_its_row(form: RequestForm, columns: dict[str, list], problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        form.from_columns("r", columns, 3)

    expected = "Expected columns: `customer_id`, `merchant_id`, `amount`."
    assert str(refused.value) == f"{problem}. {expected}"
