import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.quality import SAMPLED_ROWS, count_nulls, drift, sample

NORMAL = np.random.default_rng(1).normal(0, 1, 5000)


def table(columns, row_group_size=1000, statistics=True):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size, write_statistics=statistics)
    return pq.ParquetFile(file)


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


@given(st.lists(st.floats(-1e6, 1e6), min_size=100, max_size=200), st.randoms())
def test_drift_is_finite_not_negative_and_does_not_depend_on_the_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)

    index = drift(np.array(values), np.array(shuffled) * 2 + 1)

    assert np.isfinite(index)
    assert index >= -1e-12
    assert index == pytest.approx(drift(np.array(shuffled), np.array(values) * 2 + 1))


@pytest.mark.parametrize("statistics", [True, False])
def test_nulls_are_counted_over_all_row_groups(statistics):
    column = [None if i % 10 == 0 else i for i in range(3500)]

    assert count_nulls(table({"a": column, "b": [1] * 3500}, statistics=statistics), ["a", "b"]) == {"a": 350, "b": 0}


def test_a_small_file_is_sampled_whole_without_nulls():
    assert sample(table({"a": [1.0, None, 2.0]}), "a").to_pylist() == [1.0, 2.0]


def test_a_large_file_is_sampled_over_its_whole_length():
    rows = 4 * SAMPLED_ROWS
    values = sample(table({"a": np.arange(rows)}, row_group_size=SAMPLED_ROWS // 4), "a").to_numpy()

    assert len(values) <= SAMPLED_ROWS * 1.5
    assert values.min() == 0
    assert values.max() == rows - 1


def test_an_empty_file_has_no_values_and_no_nulls():
    empty = table({"a": pa.array([], pa.float64())})

    assert len(sample(empty, "a")) == 0
    assert count_nulls(empty, ["a"]) == {"a": 0}
