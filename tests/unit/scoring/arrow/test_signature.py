"""The signature alone gives order and types of the feature vector."""

import datetime as dt
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.arrow.signature import conform, conform_or_null, holds_every_value, read_signature
from scoring.errors import FeatureStoreError, ModelRefused


def test_order_and_types_come_from_the_signature() -> None:
    signature = read_signature(
        "m/1",
        [{"name": "b", "type": "double"}, {"name": "a", "type": "integer"}, {"name": "c", "type": "string"}],
    )
    assert signature.names == ("b", "a", "c")
    assert signature.schema.types == [pa.float64(), pa.int32(), pa.string()]


def test_a_tensor_signature_is_refused() -> None:
    with pytest.raises(ModelRefused, match="inputs without names"):
        read_signature("m/1", [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 3]}}])


def test_a_type_that_no_feature_fills_is_refused_by_name() -> None:
    with pytest.raises(ModelRefused, match=r"photo \(binary\)"):
        read_signature("m/1", [{"name": "a", "type": "double"}, {"name": "photo", "type": "binary"}])


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        (pa.float32(), pa.float64(), True),
        (pa.float64(), pa.float32(), False),
        (pa.int64(), pa.float64(), True),
        (pa.int64(), pa.int32(), True),  # checked value by value
        (pa.int32(), pa.int64(), True),
        (pa.bool_(), pa.int64(), True),
        (pa.float64(), pa.int64(), False),
        (pa.string(), pa.float64(), False),
        (pa.int64(), pa.string(), False),
        (pa.string(), pa.string(), True),
        (pa.timestamp("us", "UTC"), pa.timestamp("ns"), True),
        (pa.int64(), pa.bool_(), False),
    ],
)
def test_only_conversions_that_lose_nothing_are_allowed(source: pa.DataType, target: pa.DataType, fits: bool) -> None:
    assert holds_every_value(source, target) is fits


@given(st.lists(st.floats(width=32) | st.none()))
def test_float32_reaches_a_double_as_the_same_number_and_what_is_no_number_as_unknown(
    values: list[float | None],
) -> None:
    wide = conform(pa.array(values, pa.float32()), pa.float64(), "x").to_pylist()
    assert wide == [None if value is None or not math.isfinite(value) else value for value in values]


@given(st.lists(st.integers(-(2**53), 2**53)))
def test_integers_reach_a_double_exactly(values: list[int]) -> None:
    assert [int(value) for value in conform(pa.array(values, pa.int64()), pa.float64(), "x").to_pylist()] == values


@pytest.mark.parametrize(("value", "target"), [(2**31, pa.int32()), (2**53 + 1, pa.float64())])
def test_a_value_that_would_change_is_an_error_that_names_the_input(value: int, target: pa.DataType) -> None:
    with pytest.raises(FeatureStoreError, match="'trips' from int64"):
        conform(pa.array([value], pa.int64()), target, "trips")


@pytest.mark.parametrize(
    ("column", "target", "expected"),
    [
        (pa.array([2**31, 7, None, -(2**31)]), pa.int32(), [None, 7, None, -(2**31)]),
        (pa.array([2**53 + 1, 2**53, 2**60]), pa.float64(), [None, 2.0**53, 2.0**60]),
        (pa.array([2**24 + 1, 3]), pa.float32(), [None, 3.0]),
        (pa.array([253_000_000_000, 1], pa.timestamp("s", "UTC")), pa.timestamp("ns"), [None, 1_000_000_000]),
    ],
)
def test_a_stored_value_that_would_change_is_unknown_and_the_others_are_kept(
    column: pa.Array, target: pa.DataType, expected: list[Any]
) -> None:
    for form in (column, pa.chunked_array([column])):
        converted = conform_or_null(form, target)
        assert converted.type == target
        plain = converted.cast(pa.int64()) if pa.types.is_timestamp(target) else converted
        assert plain.to_pylist() == expected


def test_a_moment_with_a_zone_becomes_the_same_moment_without() -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=7)))
    column = conform(pa.array([moment, None], pa.timestamp("us", "Asia/Bangkok")), pa.timestamp("ns"), "seen")
    assert column.to_pylist()[1] is None
    assert column[0].as_py().isoformat() == "2026-01-01T20:04:05"


def test_infinity_is_as_unknown_as_nan() -> None:
    assert conform(pa.array([1.0, float("inf"), float("-inf")]), pa.float64(), "x").to_pylist() == [1.0, None, None]
