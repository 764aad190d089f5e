"""The population stability index, nulls and new categories of columns relative to a baseline."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.monitoring import drift as measured
from scoring.monitoring.drift import Baseline, ColumnBaseline, Observed, describe, describe_all, psi

NORMAL = np.random.default_rng(1).normal(0, 1, 5000)

numbers = st.lists(st.none() | st.floats(width=32), max_size=300)
shares = st.lists(st.floats(0, 1), min_size=10, max_size=10).map(np.array)


def drift(reference, current):
    column = describe(pa.array(reference))
    return measured.index(column, measured.count(column, pa.array(current)))


def observed(reference, current):
    found = Observed(describe_all(pa.table({"x": pa.array(reference)})))
    found.add(pa.table({"x": pa.array(current)}))
    return found.drifts()[0]


def test_the_same_distribution_has_no_drift_and_a_shifted_one_has():
    other = np.random.default_rng(2).normal(0, 1, 5000)

    assert drift(NORMAL, NORMAL) == 0
    assert drift(NORMAL, other) < 0.02
    assert drift(NORMAL, other + 1) > 0.25


def test_predictions_that_left_the_old_range_are_drift():
    assert drift(NORMAL, NORMAL + 100) > 1


def test_a_constant_that_stays_is_none_and_one_that_moves_is():
    assert drift(np.full(200, 0.5), np.full(200, 0.5)) == 0
    assert drift(np.full(200, 0.5), np.full(200, 0.1)) > 1


@pytest.mark.parametrize(("before", "now"), [(0, 5000), (5000, 99), (99, 99)])
def test_too_few_predictions_tell_nothing(before, now):
    assert drift(NORMAL[:before], NORMAL[:now]) is None


@pytest.mark.parametrize(
    "labels",
    [["gold", "silver", "tin"], [True, False, True], [1, 2, 3]],
    ids=["strings", "booleans", "integers"],
)
def test_labels_drift_by_their_shares_and_a_new_or_absent_one_counts_as_an_empty_bin(labels):
    before, other = [labels[0]] * 80 + [labels[1]] * 120, [labels[0]] * 120 + [labels[1]] * 80

    assert drift(before, list(reversed(before))) == 0
    expected = 2 * 0.2 * np.log(0.6 / 0.4)
    assert drift(before, other) == pytest.approx(expected)
    assert drift(before, [labels[1]] * 200) > 0.25
    assert drift([labels[1]] * 200, before) > 0.25
    if labels[2] not in labels[:2]:
        assert drift(before, before[:-60] + [labels[2]] * 60) > 0.25


def test_many_labels_are_grouped_so_that_random_variation_is_no_drift():
    random = np.random.default_rng(3)

    assert drift(random.integers(0, 40, 400).astype(str), random.integers(0, 40, 400).astype(str)) < 0.1


@given(st.lists(st.floats(-1e6, 1e6), min_size=100, max_size=200), st.randoms())
def test_drift_is_finite_not_negative_and_does_not_depend_on_the_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)

    index = drift(np.array(values), np.array(shuffled) * 2 + 1)

    assert np.isfinite(index)
    assert index >= -1e-12
    assert index == pytest.approx(drift(np.array(shuffled), np.array(values) * 2 + 1))


@given(shares, shares)
def test_psi_is_symmetric_and_not_negative_and_zero_for_equal_shares(before, after):
    assert psi(before, after) == pytest.approx(psi(after, before))
    assert psi(before, after) >= 0
    assert psi(before, before) == 0


@given(numbers, numbers)
def test_any_numbers_with_nulls_nan_and_infinity_are_counted(before, after):
    column = describe(pa.array(before, pa.float64()))
    counts = measured.count(column, pa.chunked_array([pa.array(after, pa.float64())]))

    assert counts.sum() == len(after)
    assert counts[-1] == sum(value is None or np.isnan(value) for value in after)
    assert sum(column.shares) == pytest.approx(1 if column.values else 0)
    index = measured.index(column, counts)
    assert index is None or (np.isfinite(index) and index >= 0)


@given(numbers)
def test_a_baseline_has_no_drift_from_itself_also_as_json_and_as_float32(values):
    column = describe(pa.array(values, pa.float64()))
    again = msgspec.json.decode(msgspec.json.encode(column), type=ColumnBaseline)

    assert again == column
    counts = measured.count(again, pa.array(values, pa.float32()))
    assert measured.index(again, counts) in {None, 0.0}


@pytest.mark.parametrize("constant", [0.1, 0.0, -5.0, 1e30])
@pytest.mark.parametrize("moved", [-0.01, 0.01])
def test_a_single_value_that_moves_either_way_is_drift(constant, moved):
    assert drift([constant] * 200, [constant] * 200) == 0
    assert drift([constant] * 200, [constant * (1 + moved) + moved] * 200) > 1


def test_large_numbers_are_compared_as_doubles_unless_one_side_is_float32():
    assert drift(NORMAL + 1e9, NORMAL + 1e9 + 5) > 1
    assert drift(np.full(200, 0.1), np.full(200, 0.1, np.float32)) == 0
    assert drift(np.full(200, 0.1, np.float32), np.full(200, 0.1)) == 0
    assert drift(np.full(200, 0.1), np.full(200, 0.2, np.float32)) > 1
    tenths = np.arange(2000) % 15 / 10
    assert drift(tenths, tenths.astype(np.float32)) == drift(tenths.astype(np.float32), tenths) == 0


@pytest.mark.parametrize("dtype", [pa.float64(), pa.string(), pa.null()])
@pytest.mark.parametrize("values", [[0.5] * 60 + [None] * 40, ["a"] * 60 + [None] * 40, [[1.0]] * 60 + [None] * 40])
def test_a_column_that_was_null_in_training_and_has_values_now(dtype, values):
    found = observed(pa.nulls(200, dtype), values)

    expected = "x has values in 60.0% of the rows (10.0% allowed), none in the baseline"
    assert list(found.problems(psi=0.25, nulls=0.1, new=0.01)) == [expected]
    assert not list(found.problems(psi=0.25, nulls=0.6, new=0.01))
    assert not list(observed(pa.nulls(200, dtype), pa.nulls(200)).problems(0.25, 0.1, 0.01))


@pytest.mark.parametrize("before", [NORMAL, ["a", "b"] * 100])
def test_a_column_of_arrows_null_type_is_null(before):
    assert observed(before, pa.nulls(200)).nulls == 1


def test_nulls_and_new_categories_are_shares_and_named():
    found = observed(["a", "b"] * 100 + [None] * 50, ["a"] * 90 + ["c", "d"] * 5 + [None] * 100)

    assert (found.rows, found.nulls, found.nulls_before, found.new) == (200, 0.5, 0.2, 0.1)
    assert list(found.problems(psi=100, nulls=0.29, new=0.09)) == [
        "x is null in 50.0% of the rows (20.0% in the baseline, 29.0% more allowed)",
        "x has new categories in 10.0% of the values (9.0% allowed): 'c', 'd'",
    ]
    assert not list(found.problems(psi=100, nulls=0.31, new=0.11))
    assert next(observed(NORMAL, NORMAL + 1).problems(psi=0.25, nulls=1, new=1)).startswith("x has PSI ")


def test_the_number_of_categories_is_bounded_and_then_none_is_new():
    names = [f"city-{number}" for number in range(500)]
    column = describe(pa.array(names))

    assert len(column.categories) == measured.MOST_CATEGORIES
    assert column.shares[-1] == pytest.approx(0.8)
    assert observed(names, ["elsewhere"] * 200).new is None


@pytest.mark.parametrize(
    "values",
    [pa.array([[1.0]] * 3), pa.array([b"x"]), pa.array([0], pa.timestamp("s")), pa.array([{"a": 1}])],
    ids=["lists", "bytes", "times", "structs"],
)
def test_columns_of_other_types_are_not_measured(values):
    assert describe_all(pa.table({"x": values, "y": values.is_valid()})).columns.keys() == {"y"}
    other = Observed(describe_all(pa.table({"x": [0.5]})))
    other.add(pa.table({"x": values, "z": values}))
    assert other.drifts() == []


@pytest.mark.parametrize(("before", "now"), [(["1", "2"], [1, 2]), ([1.5, 2.5], ["1.5", "x"]), ([True], [1])])
def test_a_column_of_another_type_is_not_compared(before, now):
    found = Observed(describe_all(pa.table({"x": before})))
    found.add(pa.table({"x": now}))

    assert found.drifts() == []


def test_a_boolean_feature_of_a_model_that_was_trained_on_0_and_1_is_compared():
    assert drift([0, 1] * 100, [False, True] * 100) == 0
    assert drift([0, 1] * 100, [False, False, False, True] * 50) == pytest.approx(0.25 * np.log(3))


@pytest.mark.parametrize("values", [[], [None, None], [float("nan")] * 200, [float("inf")] * 200])
def test_a_baseline_without_finite_values_and_rows_without_them(values):
    values = pa.array(values, pa.float64())

    assert drift(values, NORMAL) in {None, 0.0}
    assert drift(NORMAL, values) is None or values.null_count == 0


def test_a_baseline_whose_bins_do_not_fit_is_refused():
    with pytest.raises(msgspec.ValidationError, match="number of shares"):
        msgspec.json.decode(
            b'{"rows": 1, "columns": {"x": {"values": 1, "nulls": 0, "shares": [1], "edges": [1]}}}', type=Baseline
        )
