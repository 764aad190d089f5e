"""Whatever ends a batch run, its published files are the old ones or the new ones, whole; and the next run clears up.

Each run is a process of its own, forked from one that has everything imported.
"""

import hashlib
import json
import multiprocessing as mp
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scoring.storage import Location
from tests.batch_job import ROOT, BatchJob, make_repository, write_request

KILLS = 50
RUNS_AT_ONCE = 8
# What one process may hold of a request's rows: some row groups and the libraries' buffers for them.
ROWS_IN_MEMORY_MIB = 150


class Place:
    """One job's folders: repository, request, artifacts and temporary place."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        make_repository(folder)
        self.request = write_request(folder / "day1.parquet", rows)
        self.took_s = 0.0
        self.results = folder / "artifacts" / "day1"
        # A fork of pytest itself would take threads' locks along, and a fresh process imports Feast for seconds.
        self.processes = mp.get_context("forkserver")
        self.processes.set_forkserver_preload(["feast", "scoring.offline_store", "mlflow", "tests.batch_job"])

    def start(self, version: int, prepare: Callable[[], None] | None = None) -> tuple[mp.Process, Connection]:
        """A run in a process of its own. It says `started`, waits for an answer, and says how it ended."""
        ours, theirs = self.processes.Pipe()
        process = self.processes.Process(target=score, args=(self.folder, version, theirs, prepare))
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
        return {file.name: file.read_bytes() for file in self.results.iterdir()}

    def published(self) -> tuple[bytes, bytes]:
        return tuple((self.results / f"batch_{name}.parquet").read_bytes() for name in ("input", "output"))

    def leftovers(self) -> list[Path]:
        parts = [file for file in self.results.iterdir() if file.suffix == ".part"]
        return parts + list(self.temporary.iterdir())


def score(folder: Path, version: int, pipe: Connection, prepare: Callable[[], None] | None) -> None:
    tempfile.tempdir = str(folder / "tmp")
    job = BatchJob(folder)
    pipe.send("started")
    pipe.recv()
    if prepare is not None:
        prepare()
    try:
        job.run(Location(folder / "day1.parquet"), Location(folder / "artifacts"), version)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("done")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, rows=60_000)


def assert_manifest_matches(place: Place) -> None:
    said = json.loads((place.results / "manifest.json").read_text())
    output = (place.results / "batch_output.parquet").read_bytes()
    assert said["batch_output"]["sha256"] == hashlib.sha256(output).hexdigest()
    assert (
        said["origin"]["model"]
        == f"linear/{pq.read_table(place.results / said['batch_output']['name'])['model_version'][0]}"
    )


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_at_any_moment_leaves_old_or_new_files_whole_and_the_next_one_clears_up(place):
    whole = {}
    for version in (1, 2):
        assert place.run(version) == "done"
        whole[version] = place.published()
    inputs, outputs = ({files[i] for files in whole.values()} for i in (0, 1))
    assert len(inputs) == len(outputs) == 2

    chance = random.Random(7)
    interrupted = left_something = 0
    for attempt in range(KILLS):
        process, pipe = place.start(version=1 + attempt % 2)
        pipe.send("go")
        time.sleep(chance.uniform(0, place.took_s))
        process.kill()
        process.join()
        interrupted += not said_something(pipe)
        left_something += bool(place.leftovers())
        published = place.published()
        assert published[0] in inputs
        assert published[1] in outputs

    assert interrupted > KILLS / 3
    assert left_something > KILLS / 5
    assert place.run(version=1) == "done"
    assert place.published() == whole[1]
    assert place.leftovers() == []
    assert_manifest_matches(place)


def said_something(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:
        return False


class FilesUpTo:
    """A disk that is full: no file of this process may be longer."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.mark.parametrize("room", ["for nothing", "for half of the request", "for the request", "for the input"])
def test_a_full_disk_is_told_in_one_line_and_the_old_files_stay(place, room):
    assert place.run(version=1) == "done"
    before = place.files()
    request, joined = (place.folder / "day1.parquet").stat().st_size, len(before["batch_input.parquet"])
    assert request < joined / 1.5 < joined + 1000 < len(before["batch_output.parquet"])
    size = {
        "for nothing": 10,
        "for half of the request": request // 2,
        "for the request": request + 1000,
        "for the input": joined + 1000,
    }[room]

    told = place.run(version=2, prepare=FilesUpTo(size))

    assert told.startswith("StorageError: ")
    assert "File too large" in told
    assert "\n" not in told
    after = place.files()
    assert after["batch_output.parquet"] == before["batch_output.parquet"]
    assert after["manifest.json"] == before["manifest.json"]
    assert place.leftovers() == []
    assert place.run(version=2) == "done"


def test_eight_runs_of_one_request_at_once_give_the_result_of_one(place):
    assert place.run(version=1) == "done"
    before = place.files()
    (place.results / "batch_output.parquet").unlink()

    assert run_at_once(place, [1] * RUNS_AT_ONCE) == ["done"] * RUNS_AT_ONCE

    assert place.files() == before
    assert place.leftovers() == []


def test_eight_runs_with_two_versions_at_once_leave_one_winner_whole(place):
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
def test_the_memory_of_a_run_does_not_grow_with_its_rows(tmp_path, suffix):
    limit_mib = 200
    make_repository(tmp_path, drivers=10_000)
    configuration = tmp_path / "feature_repo" / "feature_store.yaml"
    configuration.write_text(configuration.read_text().replace("memory_limit: 1GB", f"memory_limit: {limit_mib}MB"))
    write_request(tmp_path / f"day1{suffix}", rows=1_000_000, drivers=10_000)

    command = [sys.executable, "-m", "tests.batch_job", str(tmp_path), str(tmp_path / f"day1{suffix}")]
    ran = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)

    took = json.loads(ran.stdout.splitlines()[-1])
    assert took["rows"] == 1_000_000
    assert took["peak_mib"] - took["before_mib"] < limit_mib + ROWS_IN_MEMORY_MIB
