"""However a batch run ends, the published files are the whole old or the whole new ones, and the next run cleans up.

Each run is its own process, forked from one that has everything imported.
"""

import hashlib
import io
import multiprocessing as mp
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scoring.batch.manifest import read_manifest
from scoring.files.location import Location
from tests.support.batch_job import BatchJob, limit_join_memory, make_repository, measure, write_request
from tests.support.forks import FORKS
from tests.support.s3 import make_bucket
from tests.support.servers import S3Server

KILLS, KILLS_ON_S3 = 50, 20
RUNS_AT_ONCE = 8
# The memory of a process for the rows of a request: a few row groups and the libraries' buffers.
ROWS_IN_MEMORY_MIB = 150


class Place:
    """The folders of one job: repository, request, artifacts (or an S3 prefix for them) and temporary files."""

    def __init__(
        self, folder: Path, rows: int, artifacts: Location | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.artifacts = artifacts or Location(folder / "artifacts")
        self.environment = dict(environment or {})
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        make_repository(folder)
        self.request = write_request(folder / "day1.parquet", rows)
        self.took_s = 0.0
        self.results = self.artifacts / "day1"

    def start(self, version: int, prepare: Callable[[], None] | None = None) -> tuple[mp.Process, Connection]:
        """Start a run in its own process. It sends `started`, waits for an answer, and sends its result."""
        ours, theirs = FORKS.Pipe()
        # A fork has the environment in which the fork server was started.
        given = (self.folder, self.artifacts, version, theirs, self.environment, prepare)
        process = FORKS.Process(target=score, args=given)
        process.start()
        theirs.close()
        assert ours.recv() == "started"
        return process, ours

    def run(self, version: int, prepare: Callable[[], None] | None = None) -> str:
        process, pipe = self.start(version, prepare)
        started = time.monotonic()
        pipe.send("go")
        ended = pipe.recv()
        self.took_s = time.monotonic() - started
        process.join()
        return ended

    def files(self) -> dict[str, bytes]:
        return {file.name: (self.results / file.name).read_bytes() for file in self.results.files()}

    def published(self) -> tuple[bytes, bytes]:
        return tuple((self.results / f"batch_{name}.parquet").read_bytes() for name in ("input", "output"))

    def leftovers(self) -> list[str]:
        parts = [file.name for file in self.results.files() if file.name.endswith(".part")]
        return parts + [file.name for place in self.temporary.iterdir() for file in place.iterdir()]


def score(
    folder: Path,
    artifacts: Location,
    version: int,
    pipe: Connection,
    environment: Mapping[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.update(environment)
    tempfile.tempdir = str(folder / "tmp")
    job = BatchJob(folder)
    pipe.send("started")
    pipe.recv()
    if prepare is not None:
        prepare()
    try:
        job.run(Location(folder / "day1.parquet"), artifacts, version)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("done")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, rows=60_000)


def assert_manifest_matches(place: Place) -> None:
    manifest, output = read_manifest(place.results / "batch_output.parquet"), place.published()[1]
    assert manifest.batch_output.sha256 == hashlib.sha256(output).hexdigest()
    assert manifest.origin.model == f"linear/{pq.read_table(io.BytesIO(output))['model_version'][0]}"


@pytest.fixture(params=["folder", "s3"])
def any_place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Artifacts in a folder, and in a bucket for this test."""
    if request.param == "folder":
        return Place(tmp_path, rows=60_000)
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    make_bucket(server, "killed")
    return Place(tmp_path, 20_000, Location("s3://killed/artifacts"), server.environment)


@pytest.mark.timeout(600)
def test_a_run_killed_at_any_time_leaves_whole_files_and_the_next_run_cleans_up(any_place):
    place = any_place
    whole = {}
    for version in (1, 2):
        assert place.run(version) == "done"
        whole[version] = place.published()
    inputs, outputs = ({files[i] for files in whole.values()} for i in (0, 1))
    assert len(inputs) == len(outputs) == 2

    chance = random.Random(7)
    interrupted = left_something = 0
    kills = KILLS if place.results.local else KILLS_ON_S3
    for attempt in range(kills):
        process, pipe = place.start(version=1 + attempt % 2)
        pipe.send("go")
        time.sleep(chance.uniform(0, place.took_s))
        process.kill()
        process.join()
        interrupted += not has_message(pipe)
        left_something += bool(place.leftovers())
        published = place.published()
        assert published[0] in inputs
        assert published[1] in outputs

    assert interrupted > kills / 3
    assert left_something > kills / 5
    assert place.run(version=1) == "done"
    assert place.published() == whole[1]
    assert place.leftovers() == []
    assert_manifest_matches(place)


def has_message(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:
        return False


class FilesUpTo:
    """Simulate a full disk: this process can't write files of more than `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.mark.parametrize("room", ["for nothing", "for half of the request", "for the request", "for the input"])
def test_a_full_disk_is_a_one_line_error_and_the_old_files_remain(place, room):
    assert place.run(version=1) == "done"
    before = place.files()
    request, joined = (place.folder / "day1.parquet").stat().st_size, len(before["batch_input.parquet"])
    assert request + 1000 < joined < joined + 1000 < len(before["batch_output.parquet"])  # or without a size limit
    size = {
        "for nothing": 10,
        "for half of the request": request // 2,
        "for the request": request + 1000,
        "for the input": joined + 1000,
    }[room]

    error = place.run(version=2, prepare=FilesUpTo(size))

    assert error.startswith("StorageError: ")
    assert "File too large" in error
    assert "\n" not in error
    after = place.files()
    assert after["batch_output.parquet"] == before["batch_output.parquet"]
    assert after["manifest.json"] == before["manifest.json"]
    assert place.leftovers() == []
    assert place.run(version=2) == "done"


def test_eight_concurrent_runs_of_one_request_give_the_result_of_one_run(place):
    assert place.run(version=1) == "done"
    before = place.files()
    (place.results / "batch_output.parquet").local.unlink()

    assert run_at_once(place, [1] * RUNS_AT_ONCE) == ["done"] * RUNS_AT_ONCE

    assert place.files() == before
    assert place.leftovers() == []


def test_eight_concurrent_runs_with_two_versions_leave_one_whole_result(place):
    whole = {}
    for version in (1, 2):
        assert place.run(version) == "done"
        whole[version] = place.published()

    ended = run_at_once(place, [1, 2] * (RUNS_AT_ONCE // 2))

    assert "done" in ended
    lost = [text for text in ended if text != "done"]
    assert all("it was made for model version linear/" in text for text in lost), lost
    joined, scored = place.published()
    assert scored in {files[1] for files in whole.values()}
    assert joined in {files[0] for files in whole.values()}
    assert_manifest_matches(place)
    assert place.leftovers() == []


def run_at_once(place: Place, versions: list[int]) -> list[str]:
    running = [place.start(version) for version in versions]
    for _, pipe in running:
        pipe.send("go")
    ended = [pipe.recv() for _, pipe in running]
    for process, _ in running:
        process.join()
    return ended


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path, suffix):
    limit_mib = 200
    make_repository(tmp_path, drivers=10_000)
    limit_join_memory(tmp_path, f"{limit_mib}MB")
    request = write_request(tmp_path / f"day1{suffix}", rows=1_000_000, drivers=10_000).local
    ours, theirs = FORKS.Pipe()

    process = FORKS.Process(target=measured, args=(tmp_path, request, theirs))
    process.start()
    took = ours.recv()
    process.join()

    assert took["rows"] == 1_000_000
    assert took["peak_mib"] - took["before_mib"] < limit_mib + ROWS_IN_MEMORY_MIB


def measured(folder: Path, request: Path, pipe: Connection) -> None:
    pipe.send(measure(folder, request))
