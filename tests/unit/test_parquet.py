"""The same rows give the same bytes, in whatever pieces they come."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.batch_request import ROWS_A_BATCH
from scoring.parquet import write_tables

ROWS = 2 * ROWS_A_BATCH + 1000
RANDOM = np.random.default_rng(5)
TABLE = pa.table(
    {
        "number": RANDOM.random(ROWS),
        "text": pa.array(RANDOM.integers(0, 1000, ROWS)).cast(pa.string()),
        "flag": pa.array(RANDOM.random(ROWS) > 0.5, mask=RANDOM.random(ROWS) > 0.9),
    }
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "whole.parquet"
    assert write_tables([TABLE], file, {b"a": b"b"}) == ROWS
    return file.read_bytes()


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=12))
def test_the_pieces_in_which_rows_come_change_no_byte(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    bounds = [0, *sorted(cuts), ROWS]
    pieces = [TABLE.slice(start, end - start) for start, end in itertools.pairwise(bounds)]
    file = tmp_path_factory.mktemp("pieces") / "pieces.parquet"
    assert write_tables(iter(pieces), file, {b"a": b"b"}) == ROWS
    assert file.read_bytes() == whole


def test_what_is_known_at_the_end_stands_in_the_footer(tmp_path: Path) -> None:
    rows: list[int] = []

    def counted():
        for piece in (TABLE.slice(0, 10), TABLE.slice(10, 5)):
            rows.append(piece.num_rows)
            yield piece

    write_tables(counted(), tmp_path / "a.parquet", {b"start": b"s"}, lambda: {"rows": str(sum(rows))})

    said = pq.read_metadata(tmp_path / "a.parquet").metadata
    assert (said[b"start"], said[b"rows"]) == (b"s", b"15")


def test_no_rows_make_a_file_without_rows(tmp_path: Path) -> None:
    assert write_tables([TABLE.slice(0, 0)], tmp_path / "a.parquet", {}) == 0
    assert pq.read_table(tmp_path / "a.parquet").schema.equals(TABLE.schema)
