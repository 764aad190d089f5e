import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.batch import quality
from scoring.batch.quality import MOST_INTEGER_LABELS, SAMPLED_ROWS, sample
from scoring.files.parquet import ParquetFiles


@pytest.fixture
def table(tmp_path):
    """Writes columns as two files, and opens them as one table."""

    def write(columns, row_group_size=1000, statistics=True):
        rows = pa.table(columns)
        half = rows.num_rows // 2
        for name, part in [("a", rows.slice(0, half)), ("b", rows.slice(half))]:
            pq.write_table(part, tmp_path / name, row_group_size=row_group_size, write_statistics=statistics)
        return ParquetFiles([tmp_path / "a", tmp_path / "b"])

    return write


def test_an_integer_of_many_values_is_a_number():
    assert quality.are_labels(pa.array(range(MOST_INTEGER_LABELS)))
    assert not quality.are_labels(pa.array(range(MOST_INTEGER_LABELS + 1)))


@pytest.mark.parametrize("statistics", [True, False])
def test_nulls_are_counted_over_all_row_groups(table, statistics):
    column = [None if i % 10 == 0 else i for i in range(3500)]

    with table({"l": [[1, 2]] * 3500, "a": column, "b": [1] * 3500}, statistics=statistics) as files:
        assert (files.nulls("a"), files.nulls("b")) == (350, 0)


def test_rows_are_found_by_their_numbers_over_all_files(table):
    with table({"a": list(range(3500)), "b": [1] * 3500}) as files:
        for start, stop in [(0, 3500), (999, 1001), (1700, 1800), (3499, 9999), (5, 5)]:
            tables = list(files.between(start, stop, ["a"]))
            assert [number for each in tables for number in each["a"].to_pylist()] == list(
                range(start, min(stop, 3500))
            )


def test_a_small_file_is_sampled_whole_without_nulls(table):
    with table({"a": [1.0, None, 2.0]}) as files:
        assert sample(files, "a").to_pylist() == [1.0, 2.0]


def test_a_large_file_is_sampled_over_its_whole_length(table):
    rows = 4 * SAMPLED_ROWS
    with table({"a": np.arange(rows)}, row_group_size=SAMPLED_ROWS // 4) as files:
        values = sample(files, "a").to_numpy()

    assert len(values) <= SAMPLED_ROWS * 1.5
    assert values.min() == 0
    assert values.max() == rows - 1


def test_an_empty_file_has_no_values_and_no_nulls(table):
    with table({"a": pa.array([], pa.float64())}) as empty:
        assert len(sample(empty, "a")) == 0
        assert empty.nulls("a") == 0
        assert empty.first(5).num_rows == 0
