"""An API process whose prediction log is on a full disk, and that is killed beside its challenger."""

import contextlib
import dataclasses
import errno
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.api_server import ApiServer
from tests.support.servers import RedisServer, skip_unless_ci, wait_until
from tests.support.worlds import build_driver_world, register_driver_model

DISK = "128k"
FILE_ROWS = 200
IDS = list(range(1001, 1101))


@functools.cache
def own_mounts() -> list[str]:
    """Return the command that runs another one with mounts of its own: as root, or else in a user namespace."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
    skip_unless_ci("This user may not mount a file system in a namespace of its own (unshare --mount)")


@dataclasses.dataclass
class ApiWithSmallDisk(ApiServer):
    """The API with a prediction log on a file system of DISK bytes, which only its process sees under this path."""

    def command(self) -> list[str]:
        mount = f'mount -t tmpfs -o size={DISK} tmpfs "{self._log_folder}" && exec "$@"'
        return [*own_mounts(), "sh", "-c", mount, "sh", *super().command()]

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"SERVING_PREDICTION_LOG": str(self._log_folder)}

    @property
    def _log_folder(self) -> Path:
        folder = self.directory / "prediction_log"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def disk(self) -> Path:
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self._log_folder}")

    def log_rows(self, result: str) -> float:
        line = f'serving_prediction_log_rows_total{{result="{result}"}} '
        return float(self.get("/metrics").text.partition(line)[2].partition("\n")[0])

    def children(self) -> list[int]:
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[ApiWithSmallDisk]:
    world = build_driver_world(tmp_path_factory.mktemp("drivers"), redis=f"{redis_server.connection_string},db=12")
    challenger = register_driver_model(world, alpha=0.3, promote=False)
    world.client.set_registered_model_alias(world.settings.model_name, "challenger", str(challenger))
    settings = {
        "SERVING_PREDICTION_LOG_ROWS": str(FILE_ROWS),
        "SERVING_PREDICTION_LOG_SECONDS": "0.5",
        "SERVING_DEADLINE_S": "5",
    }
    with ApiWithSmallDisk(tmp_path_factory.mktemp("api"), environment=world.environment | settings) as server:
        yield server


@pytest.mark.timeout(400)
def test_a_full_disk_fails_no_request_and_what_is_dropped_is_counted(api: ApiWithSmallDisk) -> None:
    def ask_until(result: str, rows: float) -> None:
        def asked() -> bool:
            answer = api.ask(f'{{"request_id":"r","driver_ids":{IDS}}}'.encode(), "/scores")
            assert answer.status_code == 200, answer.text
            return api.log_rows(result) > rows

        wait_until(asked, result)

    ask_until("dropped", 0)
    (failed,) = [line for line in api.log_lines() if line["event"] == "prediction_log_failed"]
    assert os.strerror(errno.ENOSPC) in failed["reason"]
    written = api.log_rows("written")
    files = list(api.disk.rglob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == written
    assert [path for path in api.disk.rglob("*") if path.is_file() and path not in files] == []

    for file in files:
        file.unlink()
    ask_until("written", written)
    assert [line["event"] for line in api.log_lines()].count("prediction_log_recovered") == 1


@pytest.mark.timeout(400)
def test_a_killed_api_leaves_no_process_of_its_challenger(api: ApiWithSmallDisk) -> None:
    wait_until(lambda: api.get("/ready").json()["challenger"], lambda: api.get("/ready").text)
    children = api.children()
    assert children
    api.kill()
    wait_until(lambda: not any(map(runs, children)), "the end of its children", 10)


def runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
