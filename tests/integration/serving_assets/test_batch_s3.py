"""Requests, results and features in S3, which the environment configures as for every AWS tool."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from scoring.batch.manifest import read_manifest
from scoring.errors import BatchRequestError, FeatureStoreError, StorageError
from scoring.features.materialize import materialize_online_store
from scoring.files.location import Location
from scoring.files.transfer import fetch, publishing, remove_file
from serving_assets.records.request_changes import SETTLED_AFTER_S
from serving_assets.records.requests import find_request, list_requests
from tests.support.batch_job import NOW, BatchJob, make_repository, write_driver_stats, write_request
from tests.support.daemon import Daemon
from tests.support.s3 import make_bucket, put
from tests.support.servers import S3Server, free_port


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Location]:
    """An S3 bucket of this test's own, on a server with http and path-style addresses."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    make_bucket(s3_server, name)
    return Location(f"s3://{name}")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    folder = tmp_path_factory.mktemp("job")
    make_repository(folder)
    return BatchJob(folder)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_request_in_s3_gives_the_same_bytes_in_s3_as_one_in_a_folder(
    job, bucket, s3_server, tmp_path, monkeypatch, variable
):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(variable, s3_server.endpoint_url)
    local = write_request(tmp_path / "day1.csv", 3000)
    job.run(local, Location(tmp_path / "artifacts"))

    job.run(put(tmp_path / "day1.csv", bucket / "in" / "day1.csv"), bucket / "out" / "artifacts")

    folder = bucket / "out" / "artifacts" / "day1"
    names = sorted(entry.name for entry in folder.files())
    assert names == ["batch_input.parquet", "batch_output.parquet", "manifest.json"]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "artifacts" / "day1" / name).read_bytes()
    with (folder / "batch_output.parquet").open() as opened:
        assert pq.ParquetFile(opened).metadata.num_rows == 3000


def test_requests_in_s3_are_listed_and_found(bucket, tmp_path):
    (tmp_path / "x").write_text("driver_id\n")
    for name in ("day1.csv", "day2.parquet", "notes.txt", "folder/day3.csv"):
        put(tmp_path / "x", bucket / "in" / name)

    assert [file.key for file in list_requests(bucket / "in")] == ["day1", "day2"]
    assert list_requests(bucket / "none") == ()
    files = {file.key: file for file in list_requests(bucket / "in")}
    assert find_request(bucket / "in", files, "day2") == bucket / "in" / "day2.parquet"
    with pytest.raises(BatchRequestError, match=r"s3://.*/in/day3: there is no such file"):
        find_request(bucket / "in", files, "day3")


def test_the_sensor_scores_a_request_in_s3_once_after_it_has_settled(bucket, tmp_path):
    (tmp_path / "folder").mkdir()
    daemon = Daemon(tmp_path / "folder", tmp_path / "home")
    daemon.serving.settings = msgspec.structs.replace(daemon.serving.settings, batch_requests=bucket / "in")
    daemon.serving.registry.champion = 1
    (tmp_path / "x").write_text("driver_id,event_timestamp\n")
    assert "No new or changed file" in daemon.tick("new_batch_request")
    put(tmp_path / "x", bucket / "in" / "day1.csv")
    assert "still being written" in daemon.tick("new_batch_request")

    time.sleep(SETTLED_AFTER_S + 1)
    for _ in range(2):
        daemon.tick("new_batch_request")

    assert [daemon.partitions(run) for run in daemon.runs] == [["day1"]]


def test_a_file_of_several_parts_is_complete(bucket, tmp_path):
    content = bytes(range(256)) * (25 << 12)  # 25 MiB
    (tmp_path / "big").write_bytes(content)

    put(tmp_path / "big", bucket / "big")

    found = fetch(bucket / "big", tmp_path / "copy")
    assert (found.size, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_file_that_is_replaced_by_a_longer_one_while_it_is_read_is_of_one_version(bucket, tmp_path, monkeypatch):
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("the new content")
    put(tmp_path / "old", bucket / "manifest.json")
    opened = Location.open

    def open_and_replace(place: Location):
        file = opened(place)  # knows the size now
        put(tmp_path / "new", bucket / "manifest.json")
        return file

    monkeypatch.setattr(Location, "open", open_and_replace)

    assert (bucket / "manifest.json").read_bytes() == b"the new content"


def test_a_writer_that_fails_or_is_interrupted_publishes_nothing(bucket, tmp_path):
    (tmp_path / "old").write_text("old")
    put(tmp_path / "old", bucket / "out.txt")
    before = (bucket / "out.txt").stamp()

    with contextlib.suppress(KeyboardInterrupt), publishing(bucket / "out.txt") as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt

    assert (bucket / "out.txt").stamp() == before
    assert (bucket / "out.txt").read_bytes() == b"old"


def test_a_bucket_that_does_not_exist_is_named_in_one_line(job, bucket, tmp_path):
    nowhere = Location("s3://no-such-bucket-of-ours")
    with pytest.raises(BatchRequestError, match="there is no such file"):
        job.run(nowhere / "day1.csv", bucket)
    request = write_request(tmp_path / "day1.parquet", 10)
    with pytest.raises(
        StorageError, match=r"^Writing s3://no-such-bucket-of-ours/day1/batch_input.parquet failed: .*NO_"
    ):
        job.run(request, nowhere)
    with pytest.raises(StorageError, match=r"^Listing s3://no-such-bucket-of-ours/in failed"):
        list_requests(nowhere / "in")


def test_an_object_store_that_fails_ends_the_run_and_the_old_result_stays(job, bucket, tmp_path, monkeypatch):
    request = put(write_request(tmp_path / "day1.parquet", 500).local, bucket / "day1.parquet")
    job.run(request, bucket / "artifacts")
    output = bucket / "artifacts" / "day1" / "batch_output.parquet"
    before = output.read_bytes()
    with monkeypatch.context() as outage:
        outage.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StorageError, match=r"^Looking at s3://.*/day1\.parquet failed: .*") as caught:
            job.run(request, bucket / "artifacts", version=2)
    assert "\n" not in str(caught.value)
    assert output.read_bytes() == before

    job.run(request, bucket / "artifacts", version=2)

    assert output.read_bytes() != before
    assert read_manifest(output).batch_output.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()


def test_a_server_that_is_stopped_during_a_run_fails_it_and_a_retry_succeeds(job, tmp_path, monkeypatch):
    server = S3Server(tmp_path)
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        make_bucket(server, "outage")
        source = write_request(tmp_path / "day1.parquet", 500).local
        request = put(source, Location("s3://outage/day1.parquet"))
        job.run(request, Location("s3://outage/artifacts"))
        folder = Location("s3://outage/artifacts/day1")

        with pytest.raises(
            StorageError, match=r"^Writing s3://outage/.*/batch_output\.parquet failed: .*NETWORK"
        ) as caught:
            job.run(request, Location("s3://outage/artifacts"), meanwhile=server.stop)
        assert "\n" not in str(caught.value)

        server.start()  # with no buckets: it keeps nothing
        make_bucket(server, "outage")
        put(source, request)
        manifest = job.run(request, Location("s3://outage/artifacts"))
        assert manifest.outcome.rows == 500
        assert len(folder.files()) == 3
    finally:
        server.stop()


@pytest.fixture
def features_in_s3(bucket: Location, s3_server: S3Server, tmp_path: Path) -> tuple[BatchJob, Location]:
    """A job whose features are in the bucket, and where they are."""
    write_driver_stats(tmp_path / "stats.parquet", 20, 30)
    source = put(tmp_path / "stats.parquet", bucket / "features" / "driver_stats.parquet")
    (tmp_path / "s3").mkdir()
    make_repository(tmp_path / "s3", source=f'path="{source}", s3_endpoint_override="{s3_server.endpoint_url}"')
    return BatchJob(tmp_path / "s3"), source


def test_features_in_s3_are_joined_and_materialized(job, features_in_s3, tmp_path):
    remote, _ = features_in_s3
    request = write_request(tmp_path / "day1.parquet", 2000)

    remote.run(request, Location(tmp_path / "remote"))
    job.run(request, Location(tmp_path / "local"))
    there, here = (pq.read_table(tmp_path / name / "day1" / "batch_output.parquet") for name in ("remote", "local"))

    assert there.equals(here)
    assert there["prediction"].null_count == 20
    watermarks = materialize_online_store(remote.store, NOW)
    assert [mark.until for mark in watermarks] == [NOW]


def test_a_missing_feature_source_fails_the_run_with_the_cause(features_in_s3, s3_server, tmp_path):
    remote, source = features_in_s3
    request = write_request(tmp_path / "day1.parquet", 100)
    remove_file(source)

    with pytest.raises(FeatureStoreError, match=r"there is no Parquet file at s3://.*driver_stats") as caught:
        remote.run(request, Location(tmp_path / "artifacts"))

    assert "\n" not in str(caught.value)
    put(tmp_path / "stats.parquet", source)
    assert remote.run(request, Location(tmp_path / "artifacts")).outcome.rows == 100
