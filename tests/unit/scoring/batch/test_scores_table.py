"""The Delta table of scored requests: whole requests, one commit each, in a folder and in S3."""

import datetime as dt
import os
import resource
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from scoring.batch import scores_table
from scoring.batch.scores_table import ScoresTable
from scoring.errors import BatchRequestError, SettingsError, StorageError
from scoring.files.location import Location, delta_options
from scoring.files.transfer import content_of
from tests.support.results import NOON, result
from tests.support.s3 import make_bucket
from tests.support.servers import S3Server, free_port


def table_at(place: Location, version: int | None = None) -> DeltaTable:
    return DeltaTable(str(place), version=version, storage_options=delta_options(place))


def counts(place: Location) -> Counter[tuple[str, Any]]:
    """Return (request, prediction) → number of rows."""
    rows = table_at(place).to_pyarrow_table(columns=["batch_request", "prediction"]).to_pylist()
    return Counter((row["batch_request"], row["prediction"]) for row in rows)


@pytest.fixture
def local(tmp_path: Path) -> Location:
    return Location(tmp_path / "scores")


@pytest.fixture(params=["folder", "S3"])
def place(request: pytest.FixtureRequest, local: Location, monkeypatch: pytest.MonkeyPatch) -> Location:
    if request.param == "folder":
        return local
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    make_bucket(server, "scores-table")
    return Location(f"s3://scores-table/{local.parent.name}/scores")


def test_a_commit_replaces_the_rows_of_one_request_and_the_same_content_makes_none(place, tmp_path):
    table = ScoresTable(place)
    assert table.write("day1", result(tmp_path / "1", 3, 1.0)).committed
    assert table.write("Tag-ä", result(tmp_path / "2", 4, 2.0, parts=2)).version == 1

    after = table.write("day1", result(tmp_path / "1", 5, 3.0, model="m/2"))
    again = [
        ScoresTable(place).write(key, Location(tmp_path / {"day1": "1", "Tag-ä": "2"}[key]))
        for key in ("day1", "Tag-ä")
    ]

    assert counts(place) == {("day1", 3.0): 5, ("Tag-ä", 2.0): 4}
    assert (after.version, after.committed) == (2, True)
    assert [(each.version, each.committed) for each in again] == [(2, False)] * 2
    assert [table_at(place, version).to_pyarrow_table().num_rows for version in (0, 1)] == [3, 7]
    commit = table_at(place).history(1)[0]
    found = {name: commit[name] for name in ("batch_request", "model_version", "content_sha256")}
    assert found == {
        "batch_request": "day1",
        "model_version": "m/2",
        "content_sha256": content_of(tmp_path / "1" / "batch_output.parquet", "").sha256,
    }


def test_writers_at_the_same_time_lose_and_duplicate_nothing(place, tmp_path):
    folders = {key: result(tmp_path / key, 10, float(key[-1])) for key in ("day1", "day2", "day3")}

    with ThreadPoolExecutor(6) as threads:  # the first commits also create the table
        written = list(threads.map(lambda key: ScoresTable(place).write(key, folders[key]), [*folders, *folders]))

    assert counts(place) == {("day1", 1.0): 10, ("day2", 2.0): 10, ("day3", 3.0): 10}
    assert sum(each.committed for each in written) == 3
    assert table_at(place).version() == 2


def test_pandas_duckdb_and_polars_read_requests_with_different_columns(local, tmp_path):
    table = ScoresTable(local)
    table.write("day1", result(tmp_path / "1", 2))
    table.write("day2", result(tmp_path / "2", 1, 1.5, model="m/2", order=["A"], prediction_gold=[0.25]))

    expected = [*[("day1", 0.5, None, None)] * 2, ("day2", 1.5, "A", 0.25)]
    query = 'SELECT batch_request, prediction, "order", prediction_gold FROM scores ORDER BY ALL'
    with duckdb.connect() as connection:
        connection.register("scores", table_at(local).to_pyarrow_dataset())
        assert connection.execute(query).fetchall() == expected
    assert pl.SQLContext(scores=pl.scan_delta(str(local))).execute(query).collect().rows() == expected
    frame = table_at(local).to_pandas().sort_values(["batch_request", "id"])
    assert frame["prediction"].tolist() == [0.5, 0.5, 1.5]
    assert frame["order"].isna().tolist() == [True, True, False]
    assert frame["event_timestamp"].tolist() == [pd.Timestamp(NOON)] * 3


def test_values_of_types_that_delta_does_not_have_are_stored_without_loss(local, tmp_path):
    own = {
        "labels": pa.array(["x", "y"]).dictionary_encode(),
        "large": pa.array([1, 2**64 - 1], pa.uint64()),
        "time": pa.array([1000, None], pa.timestamp("ns")),
        "empty": pa.nulls(2),
        "list": pa.array([[255], None], pa.list_(pa.uint8())),
    }

    ScoresTable(local).write("day1", result(tmp_path / "1", 2, **own))

    rows = table_at(local).to_pyarrow_table().sort_by("id").to_pylist()
    stamp = dt.datetime(1970, 1, 1, 0, 0, 0, 1, dt.UTC)
    assert [(row["labels"], int(row["large"]), row["time"], row["list"]) for row in rows] == [
        ("x", 1, stamp, [255]),
        ("y", 2**64 - 1, None, None),
    ]
    assert "empty" not in rows[0]


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        (
            {"order": pa.array([1])},
            r"'order': its type is string in .*scores, and long in the result: write one ",
        ),
        ({"Order": ["A"]}, "'Order': .*scores has column 'order', and many readers ignore case: rename it"),
        ({"Batch_Request": ["A"]}, "'Batch_Request': the scores table has a column of this name: rename it"),
        ({"at": pa.array([1], pa.time64("us"))}, r"'at': a Delta table has no type for time64\[us\]: convert"),
        ({"at": pa.array([1], pa.timestamp("ns"))}, r"'at': a timestamp\[ns\] value does not fit timestamp\[us"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_in_one_line_and_nothing_changes(local, tmp_path, own, problem):
    table = ScoresTable(local)
    table.write("day1", result(tmp_path / "1", 1, order=["A"]))
    files = sorted(local.local.rglob("*"))

    with pytest.raises(BatchRequestError, match=rf"^Batch request day2, column {problem}") as caught:
        table.write("day2", result(tmp_path / "2", 1, **own))

    assert "\n" not in str(caught.value)
    assert sorted(local.local.rglob("*.*")) == [each for each in files if each.is_file()]


def test_the_missing_package_is_named(local, monkeypatch):
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(
        SettingsError, match=r"^SERVING_SCORES_TABLE is set, and the package deltalake is not installed"
    ):
        ScoresTable(local)


def test_other_files_and_tables_of_other_software_are_refused(local, tmp_path):
    source = result(tmp_path / "1", 1)
    with pytest.raises(
        SettingsError, match=r"^SERVING_SCORES_TABLE names .*, which has other files \(1\) and is not a "
    ):
        ScoresTable(Location(tmp_path)).write("day1", source)
    write_deltalake(str(local), pa.table({"id": [1]}))
    with pytest.raises(
        SettingsError, match=r"a Delta table of other software, .*, with partition columns \[\] and writer"
    ):
        ScoresTable(local).write("day1", source)
    append_only = Location(tmp_path / "append_only")
    assert not ScoresTable(append_only).check()
    ScoresTable(append_only).write("day1", source)
    assert ScoresTable(append_only).check()
    table_at(append_only).alter.set_table_properties({"delta.appendOnly": "true"})
    with pytest.raises(SettingsError, match=r"whose property delta\.appendOnly keeps old rows: unset it\.$"):
        ScoresTable(append_only).check()
    strict = Location(tmp_path / "strict")
    columns = pa.schema([pa.field("paid", pa.int64(), nullable=False), pa.field("batch_request", pa.string())])
    DeltaTable.create(str(strict), columns, partition_by=["batch_request"])
    with pytest.raises(BatchRequestError, match=r"column 'paid': .* has it as NOT NULL, and the result lacks it"):
        ScoresTable(strict).write("day1", source)
    with pytest.raises(StorageError, match=r"^Writing the Delta table .*Path does not exist") as caught:
        ScoresTable(source / "manifest.json").write("day1", source)
    assert "\n" not in str(caught.value)


def test_a_full_disk_a_missing_result_and_an_outage_leave_the_table_as_it_was(local, tmp_path, monkeypatch):
    table = ScoresTable(local)
    table.write("day1", result(tmp_path / "1", 3, 1.0))
    files = sorted(local.local.rglob("*"))
    large = result(tmp_path / "2", 30_000, parts=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"^Writing .*scores-.*-0\.parquet failed: .*File too large"):
            table.write("day1", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(BatchRequestError, match=r"none/batch_output\.parquet: there is no complete result \("):
        table.write("day1", Location(tmp_path / "none"))
    (tmp_path / "2" / "part-1.parquet").write_bytes(b"other content")
    with pytest.raises(BatchRequestError, match=r"2/batch_output\.parquet: there is no complete result \("):
        table.write("day1", large)
    assert sorted(local.local.rglob("*")) == files
    assert counts(local) == {("day1", 1.0): 3}

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StorageError, match=r"^Writing the Delta table s3://scores/t failed: .*S3 error.*") as caught:
        ScoresTable(Location("s3://scores/t")).write("day1", Location(tmp_path / "1"))
    assert "\n" not in str(caught.value)


def test_a_writer_that_is_always_outrun_gives_up_in_one_line(local, tmp_path, monkeypatch):
    def outrun(*_: object) -> None:
        raise CommitFailedError("version 7 exists")

    monkeypatch.setattr(scores_table, "ATTEMPTS", 3)
    monkeypatch.setattr(ScoresTable, "_commit", outrun)
    with pytest.raises(
        StorageError, match=r"scores failed: other writers committed first 3 times in a row \(version 7"
    ):
        ScoresTable(local).write("day1", result(tmp_path / "1", 1))


def test_a_result_that_is_replaced_meanwhile_is_written_too(local, tmp_path, monkeypatch):
    commit = ScoresTable._commit

    def commit_late(*arguments: Any) -> int:
        if not local.local.joinpath("_delta_log").exists():
            result(tmp_path / "1", 4, 2.0)  # by a run that has found the table up to date
        return commit(*arguments)

    monkeypatch.setattr(ScoresTable, "_commit", commit_late)
    written = ScoresTable(local).write("day1", result(tmp_path / "1", 3, 1.0))

    assert (written.version, written.manifest.outcome.rows) == (1, 4)
    assert counts(local) == {("day1", 2.0): 4}


# The first process imports. Each of its forks looks at what the killed one has left, and writes until it is killed.
KILLS = """
import os, random, signal, sys, time
import deltalake.exceptions, deltalake.transaction, pyarrow.dataset
from scoring.batch.scores_table import ScoresTable
from scoring.files.location import Location

place, folders = Location(sys.argv[1]), [Location(each) for each in sys.argv[2:]]

def write(looked):
    if deltalake.DeltaTable.is_deltatable(str(place)):
        table = deltalake.DeltaTable(str(place))
        rows = table.to_pyarrow_table(columns=["batch_request", "prediction"])
        found = rows.group_by(["batch_request", "prediction"]).aggregate([([], "count_all")]).to_pylist()
        assert len({each["batch_request"] for each in found}) == len(found) <= 2, found
        assert all(each["count_all"] == each["prediction"] for each in found), found
        versions = [each["version"] for each in table.history()]
        assert versions == list(range(table.version(), -1, -1)), versions
    os.write(looked, b".")
    table = ScoresTable(place)
    while True:
        table.write(random.choice(["day1", "day2"]), random.choice(folders))

for _ in range(51):
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            write(writes)
        finally:
            os._exit(1)
    os.close(writes)
    if os.read(reads, 1) != b".":
        sys.exit("A killed writer has left an inconsistent table.")
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reads)
"""


def test_fifty_kills_leave_whole_requests_and_only_leftovers_that_a_vacuum_removes(local, tmp_path):
    folders = [str(result(tmp_path / f"{rows}", rows, float(rows))) for rows in (1000, 2000, 3000)]

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    subprocess.run([sys.executable, "-c", KILLS, str(local), *folders], env=environment, check=True, timeout=120)

    table = ScoresTable(local)
    for key in ("day1", "day2"):  # also removes the leftovers of unfinished files
        table.write(key, result(tmp_path / "last", 7, 7.0))
    assert table_at(local).version() > 10
    table_at(local).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    files = {str(each) for each in local.local.rglob("batch_request=*/*")}
    assert files == set(table_at(local).file_uris())
    assert counts(local) == {("day1", 7.0): 7, ("day2", 7.0): 7}
