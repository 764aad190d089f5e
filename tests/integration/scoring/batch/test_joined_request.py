"""A request of the right types is joined as it is; every other one is copied first. Both give the same."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring import joined_request
from scoring.batch.join import with_point_in_time_features
from scoring.batch.joined_request import write_joined
from scoring.batch.typed_request import is_typed
from scoring.errors import BatchRequestError, FeatureStoreError
from scoring.files.location import Location
from tests.support.batch_job import BatchJob, make_repository, write_request

ROWS = 70_000


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    folder = tmp_path_factory.mktemp("job")
    make_repository(folder)
    return BatchJob(folder)


def joined(job: BatchJob, request: Path) -> tuple[bytes, tuple[int, dict[str, int]], bool]:
    """The file that was written, what was told of it, and whether the request was copied."""
    part = request.with_name("part")
    told = write_joined(job.store, job.features, request, str(request), part, {b"of": b"us"})
    copy = request.with_suffix(".typed.parquet")
    copied = copy.exists()
    copy.unlink(missing_ok=True)
    return part.read_bytes(), told, copied


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
    expected, told, copied = joined(job, request)
    assert (told[0], copied) == (ROWS, False)
    assert told[1] == {"driver_stats": 0}

    for name, other in other_types(rows).items():
        pq.write_table(other, request)
        assert not is_typed(request, job.features), name
        assert joined(job, request) == (expected, told, True), name
    for none in (rows.slice(0, 0), rows.slice(0, 0).cast(pa.schema([f.with_nullable(False) for f in rows.schema]))):
        pq.write_table(none, request)
        assert joined(job, request)[1:] == ((0, {}), False)
        assert all(field.nullable for field in pq.read_schema(tmp_path / "part") if field.name != "order")
    rows.to_pandas().to_parquet(request)
    assert is_typed(request, job.features)
    assert joined(job, request) == (expected, told, False)
    pq.write_table(pa.concat_tables([rows] * 16), request, row_group_size=16 * ROWS)
    assert not is_typed(request, job.features)  # a row group would take memory that grows with the request


def test_a_path_that_reads_as_a_pattern_or_names_a_column_is_a_path(job, tmp_path):
    expected, told, _ = joined(job, write_request(tmp_path / "day1.parquet", 100).local)
    for folder in ("driver_id=7/c*d", "driver_id=7/cXd", "[e]?", "e1"):
        (tmp_path / folder).mkdir(parents=True)
    write_request(tmp_path / "driver_id=7" / "cXd" / "day1.parquet", 50)
    write_request(tmp_path / "e1" / "day1.parquet", 50)
    for folder in ("driver_id=7/c*d", "[e]?"):
        request = write_request(tmp_path / folder / "day1.parquet", 100).local
        assert joined(job, request) == (expected, told, False)
        pq.write_table(other_types(pq.read_table(request))["ns"], request)
        assert joined(job, request) == (expected, told, True)


def test_what_only_the_join_cannot_read_is_copied_for_it(job, tmp_path, monkeypatch):
    request = write_request(tmp_path / "day1.parquet", ROWS).local
    expected = joined(job, request)

    def of_a_copy_alone(*arguments):
        stale = arguments[3]
        for number, table in enumerate(with_point_in_time_features(*arguments)):
            if number == 1 and arguments[2] == request:
                stale["driver_stats"] = 5
                raise FeatureStoreError("joining", "a reader that lacks an encoding")
            yield table

    monkeypatch.setattr(joined_request, "with_point_in_time_features", of_a_copy_alone)
    assert joined(job, request) == (*expected[:2], True)


def test_a_bad_row_far_into_a_request_of_the_right_types_is_named(job, tmp_path):
    rows = pq.read_table(write_request(tmp_path / "day1.parquet", 2 * ROWS).local)
    keys = rows["driver_id"].to_pandas().astype("Int64")
    keys[ROWS + 17] = pd.NA
    rows = rows.set_column(0, "driver_id", pa.chunked_array([pa.Array.from_pandas(keys)]))
    pq.write_table(rows, tmp_path / "day1.parquet")
    assert is_typed(tmp_path / "day1.parquet", job.features)

    with pytest.raises(BatchRequestError, match=f"column 'driver_id', row {ROWS + 18}: this row has no value"):
        joined(job, tmp_path / "day1.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_request_may_be_named_as_its_copy_is(job, tmp_path, suffix):
    request = write_request(tmp_path / f"typed{suffix}", 2 * ROWS)
    assert job.run(request, Location(tmp_path / "artifacts")).outcome.rows == 2 * ROWS
