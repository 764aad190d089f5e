"""A request of the right types is joined in place; every other one is copied first. Both give the same bytes."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.batch.join import PointInTimeJoin, joins_in_place
from scoring.errors import BatchRequestError, FeatureStoreError
from scoring.files.location import Location
from scoring.files.parquet import write_tables
from tests.support.batch_job import BatchJob, make_repository, write_request

ROWS = 70_000


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    folder = tmp_path_factory.mktemp("job")
    make_repository(folder)
    return BatchJob(folder)


def joined(job: BatchJob, request: Path) -> tuple[bytes, tuple[int, dict[str, int]], bool]:
    """The file that was written, the join's counts, and whether the request was copied."""
    part = request.with_name("part")
    join = PointInTimeJoin(job.store, job.features, request)
    assert write_tables(join.tables(), part, {b"of": b"us"}) == join.rows
    copy = request.with_suffix(".typed.parquet")
    copied = copy.exists()
    copy.unlink(missing_ok=True)
    return part.read_bytes(), (join.rows, join.stale), copied


def other_types(rows: pa.Table) -> dict[str, pa.Table]:
    """The same rows in other types: as pandas 2 writes them, as a file without time zones has them, as texts."""
    moments = rows["event_timestamp"]
    keys = rows["driver_id"]
    return {
        "ns": rows.set_column(1, "event_timestamp", moments.cast(pa.timestamp("ns", "UTC"))),
        "no zone": rows.set_column(1, "event_timestamp", moments.cast(pa.timestamp("us"))),
        "text": rows.set_column(0, "driver_id", keys.cast(pa.string())),
    }


def test_a_request_of_the_right_types_is_not_copied_and_gives_the_same_bytes_as_its_copy(job, tmp_path):
    request = write_request(tmp_path / "day1.parquet", ROWS).local
    rows = pq.read_table(request)
    expected, counts, copied = joined(job, request)
    assert (counts[0], copied) == (ROWS, False)
    assert counts[1] == {"driver_stats": 0}

    for name, other in other_types(rows).items():
        pq.write_table(other, request)
        assert not joins_in_place(request, job.features), name
        assert joined(job, request) == (expected, counts, True), name
    for none in (rows.slice(0, 0), rows.slice(0, 0).cast(pa.schema([f.with_nullable(False) for f in rows.schema]))):
        pq.write_table(none, request)
        assert joined(job, request)[1:] == ((0, {}), False)
        assert all(field.nullable for field in pq.read_schema(tmp_path / "part") if field.name != "order")
    rows.to_pandas().to_parquet(request)
    assert joins_in_place(request, job.features)
    assert joined(job, request) == (expected, counts, False)
    pq.write_table(pa.concat_tables([rows] * 16), request, row_group_size=16 * ROWS)
    assert not joins_in_place(request, job.features)  # a row group would take memory that grows with the request


def test_a_path_that_reads_as_a_pattern_or_names_a_column_is_a_path(job, tmp_path):
    expected, counts, _ = joined(job, write_request(tmp_path / "day1.parquet", 100).local)
    for folder in ("driver_id=7/c*d", "driver_id=7/cXd", "[e]?", "e1"):
        (tmp_path / folder).mkdir(parents=True)
    write_request(tmp_path / "driver_id=7" / "cXd" / "day1.parquet", 50)
    write_request(tmp_path / "e1" / "day1.parquet", 50)
    for folder in ("driver_id=7/c*d", "[e]?"):
        request = write_request(tmp_path / folder / "day1.parquet", 100).local
        assert joined(job, request) == (expected, counts, False)
        pq.write_table(other_types(pq.read_table(request))["ns"], request)
        assert joined(job, request) == (expected, counts, True)


def test_a_file_whose_codec_is_not_known_to_be_read_alike_is_copied(job, tmp_path):
    request = write_request(tmp_path / "day1.parquet", ROWS).local
    expected = joined(job, request)
    pq.write_table(pq.read_table(request), request, compression="LZ4", use_dictionary=False)
    assert joined(job, request) == expected
    content = request.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # The codec of each column: LZ4_RAW becomes the older LZ4, as Hadoop's writers name it.
    request.write_bytes(content[:footer] + content[footer:].replace(b"\x15\x0e\x16", b"\x15\x0a\x16"))
    assert pq.ParquetFile(request).metadata.row_group(0).column(0).compression == "UNKNOWN"

    assert joined(job, request) == (*expected[:2], True)


def test_a_bad_row_is_named_where_the_store_fails_too(job, tmp_path):
    request = write_request(tmp_path / "day1.parquet", 2 * ROWS).local
    make_repository(tmp_path)
    broken = BatchJob(tmp_path)
    (tmp_path / "feature_repo" / "data" / "driver_stats.parquet").unlink()
    with pytest.raises(FeatureStoreError, match=r"there is no Parquet file at .*driver_stats"):
        joined(broken, request)
    rows = pq.read_table(request)
    pq.write_table(without_key(rows, ROWS + 17), request)

    with pytest.raises(BatchRequestError, match=f"column 'driver_id', row {ROWS + 18}: this row has no value"):
        joined(broken, request)


def without_key(rows: pa.Table, row: int) -> pa.Table:
    keys = rows["driver_id"].to_pandas().astype("Int64")
    keys[row] = pd.NA
    return rows.set_column(0, "driver_id", pa.chunked_array([pa.Array.from_pandas(keys)]))


def test_a_bad_row_far_into_a_request_of_the_right_types_is_named(job, tmp_path):
    rows = pq.read_table(write_request(tmp_path / "day1.parquet", 2 * ROWS).local)
    pq.write_table(without_key(rows, ROWS + 17), tmp_path / "day1.parquet")
    assert joins_in_place(tmp_path / "day1.parquet", job.features)

    with pytest.raises(BatchRequestError, match=f"column 'driver_id', row {ROWS + 18}: this row has no value"):
        joined(job, tmp_path / "day1.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_request_may_be_named_as_its_copy_is(job, tmp_path, suffix):
    request = write_request(tmp_path / f"typed{suffix}", 2 * ROWS)
    assert job.run(request, Location(tmp_path / "artifacts")).outcome.rows == 2 * ROWS
