"""The same rows give the same bytes, however they are split into tables."""

import itertools
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.files.encodings import constant
from scoring.files.parquet import ROWS_PER_BATCH, write_tables

ROWS = 2 * ROWS_PER_BATCH + 1000
RANDOM = np.random.default_rng(5)
TABLE = pa.table(
    {
        "number": RANDOM.random(ROWS),
        "text": pa.array(RANDOM.integers(0, 1000, ROWS)).cast(pa.string()),
        "flag": pa.array(RANDOM.random(ROWS) > 0.5, mask=RANDOM.random(ROWS) > 0.9),
        "whole": pa.array(RANDOM.integers(-(2**63), 2**63 - 1, ROWS), mask=RANDOM.random(ROWS) > 0.9),
        "timestamp": pa.array(RANDOM.integers(0, 2**50, ROWS)).cast(pa.timestamp("us", "UTC")),
        "maker": constant("ranker", ROWS),
    }
)
CONSTANTS = ("maker",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "whole.parquet"
    assert write_tables([TABLE], file, {b"a": b"b"}, constants=CONSTANTS) == ROWS
    return file.read_bytes()


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=12))
def test_the_pieces_in_which_rows_come_change_no_byte(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    bounds = [0, *sorted(cuts), ROWS]
    pieces = [TABLE.slice(start, end - start) for start, end in itertools.pairwise(bounds)]
    file = tmp_path_factory.mktemp("pieces") / "pieces.parquet"
    assert write_tables(iter(pieces), file, {b"a": b"b"}, constants=CONSTANTS) == ROWS
    assert file.read_bytes() == whole


def test_everybody_reads_what_was_written_and_constants_as_their_values(whole: bytes, tmp_path: Path) -> None:
    file = tmp_path / "whole.parquet"
    file.write_bytes(whole)
    expected = TABLE.set_column(TABLE.column_names.index("maker"), "maker", TABLE["maker"].cast(pa.string()))

    read = pq.read_table(file)
    assert read.equals(expected)
    assert read.schema.equals(expected.schema.with_metadata({b"a": b"b"}), check_metadata=True)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone='UTC'")
        by_duckdb = connection.sql(f"FROM '{file}'").to_arrow_table()
    assert by_duckdb.cast(expected.schema).equals(expected)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.uint64(), pa.timestamp("ns")])
def test_whole_numbers_of_any_type_come_out_as_they_went_in(kind: pa.DataType, tmp_path: Path) -> None:
    values = pa.array([0, 1, None, 100]).cast(kind)
    if pa.types.is_unsigned_integer(kind):
        values = pa.concat_arrays([values, pa.array([2**kind.bit_width - 1], kind)])
    # The second column's path in the file is that of a column of its own, too.
    nested = pa.array([{"b": "text"}] * len(values))
    table = pa.Table.from_arrays([values, nested, values], names=["whole", "a", "a.b"])

    write_tables([table], tmp_path / "a.parquet", {})

    assert pq.read_table(tmp_path / "a.parquet").equals(table)


def test_floats_are_compressed_where_that_saves_a_third_and_everything_else_always(tmp_path: Path) -> None:
    table = pa.table(
        {
            "random": RANDOM.random(1000),
            "widened": RANDOM.random(1000, dtype=np.float32).astype(np.float64),
            "counts": RANDOM.integers(0, 100, 1000).astype(np.float64),
            "nothing": pa.nulls(1000, pa.float64()),
            "whole": RANDOM.integers(-(2**63), 2**63 - 1, 1000),
            "text": pa.array(RANDOM.random(1000)).cast(pa.string()),
            "lists": pa.array([[float(value)] for value in RANDOM.random(1000)]),
            "a.b": RANDOM.random(1000),
        }
    )

    write_tables([table], tmp_path / "a.parquet", {})

    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    plain = [column.path_in_schema for column in columns if column.compression == "UNCOMPRESSED"]
    assert plain == ["random", "widened"]
    assert {column.compression for column in columns if column.path_in_schema not in plain} == {"SNAPPY"}
    assert pq.read_table(tmp_path / "a.parquet").equals(table)


def test_what_lies_below_a_null_changes_no_byte(tmp_path: Path) -> None:
    absent = RANDOM.random(1000) > 0.3
    for name, below in (("a", RANDOM.random(1000)), ("b", np.zeros(1000))):
        values = pa.array(np.where(absent, below, np.arange(1000.0) * 0.1), mask=absent)
        write_tables([pa.table({"number": values})], tmp_path / name, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_known_at_the_end_stands_in_the_footer(tmp_path: Path) -> None:
    rows: list[int] = []

    def counted():
        for piece in (TABLE.slice(0, 10), TABLE.slice(10, 5)):
            rows.append(piece.num_rows)
            yield piece

    write_tables(counted(), tmp_path / "a.parquet", {b"start": b"s"}, lambda: {"rows": str(sum(rows))})

    metadata = pq.read_metadata(tmp_path / "a.parquet").metadata
    assert (metadata[b"start"], metadata[b"rows"]) == (b"s", b"15")


def test_no_rows_make_a_file_without_rows(tmp_path: Path) -> None:
    assert write_tables([TABLE.slice(0, 0)], tmp_path / "a.parquet", {}) == 0
    assert pq.read_table(tmp_path / "a.parquet").schema.equals(TABLE.schema)


def test_a_file_without_rows_knows_its_constants(tmp_path: Path) -> None:
    write_tables([TABLE.slice(0, 0)], tmp_path / "a.parquet", {}, constants=CONSTANTS)
    assert pq.read_schema(tmp_path / "a.parquet").field("maker").type == pa.string()
