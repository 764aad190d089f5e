"""`make demo` in a copy of the project without any state."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.dagit import Dagit
from demo.online import Api
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("api", "demo", "feature_repo", "scoring", "serving_assets", "workspace.yaml")
# A demo starts in half a minute on a quiet machine, and four other processes may run beside it.
UP_S = 300.0
ARRIVAL_S = 180.0


class Demo:
    """A copy of the project, and the ports of its demo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("data", "__pycache__"))
            else:
                shutil.copy(ROOT / part, folder / part)
        self.dagit, self.api, self.mlflow_port = Dagit(free_port()), Api(free_port()), free_port()
        ports = {
            "DAGIT_PORT": self.dagit.url.rpartition(":")[2],
            "SERVING_PORT": self.api.url.rpartition(":")[2],
            "MLFLOW_PORT": str(self.mlflow_port),
        }
        self.environment = dict(os.environ) | ports
        self.output = folder / "output.txt"
        # The .env of docs/deploy.md, for Docker Compose: the demo must not read it.
        (folder / ".env").write_text("SERVING_MODEL_NAME=another\nSERVING_ARTIFACTS=/nowhere\n")

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "demo", *arguments],
                cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder, env=self.environment | environment,
            capture_output=True, text=True, timeout=UP_S, check=False,
        )  # fmt: skip

    def events(self) -> list[str]:
        """The lines that the running demo printed after its addresses, without their times."""
        lines = self.output.read_text().partition("Running until Ctrl-C")[2].splitlines()
        return [line[9:] for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]

    def processes(self) -> list[str]:
        """Command lines of the processes whose working directory is in the copy."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cwd").resolve().is_relative_to(self.folder):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return [command for command in found if command]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo").resolve())
    process = demo.start()
    try:
        until = time.monotonic() + UP_S
        while "Running until Ctrl-C" not in demo.output.read_text():
            assert process.poll() is None, demo.output.read_text()
            assert time.monotonic() < until, demo.output.read_text()
            time.sleep(0.2)
        yield demo
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert demo.processes() == []


@pytest.mark.timeout(400)
def test_it_prints_the_batch_output_and_an_answer(demo: Demo) -> None:
    text = demo.output.read_text()
    for asset in ("feast_registry", "online_store", "registered_model_version", "batch_input", "batch_output"):
        assert f"✓ {asset}" in text
    assert "run succeeded in " in text
    assert "9999" in text
    assert "not_found" in text
    assert '→ {"request_id":"uuid-1","prediction":10' in text
    assert "4 are equal to the bit, 0 unexplained" in text
    assert (demo.folder / "var" / "artifacts" / "rides_today" / "batch_output.parquet").is_file()


@pytest.mark.timeout(400)
def test_the_mlflow_ui_shows_the_registered_version(demo: Demo) -> None:
    until = time.monotonic() + ARRIVAL_S
    while True:
        try:
            url = f"http://127.0.0.1:{demo.mlflow_port}/api/2.0/mlflow/registered-models/get?name=driver_ranker"
            with urllib.request.urlopen(url, timeout=5) as response:
                assert json.load(response)["registered_model"]["latest_versions"][0]["version"] == "1"
            return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.5)


@pytest.mark.timeout(400)
def test_a_promoted_version_starts_one_run_and_serves_without_a_restart(demo: Demo) -> None:
    assert demo.dagit.ready()
    before = demo.dagit.runs()
    promoted = demo.run("demo.promote", DAGIT_PORT="", SERVING_PORT="")  # it finds the ports itself
    assert promoted.returncode == 0, promoted.stderr
    assert demo.api.version() == 2
    until = time.monotonic() + ARRIVAL_S
    while (runs := demo.dagit.runs()) == before or set(runs.values()) != {"SUCCESS"}:
        assert time.monotonic() < until, runs
        time.sleep(0.5)
    time.sleep(3)  # a later tick would request a second run
    assert len(demo.dagit.runs()) == len(before) + 1
    while len(events := demo.events()) < 5:
        assert time.monotonic() < until, events
        time.sleep(0.5)
    assert events == [
        "Model      driver_ranker/2 promoted: alias champion moved from driver_ranker/1",
        "Online     the API swapped driver_ranker/1 for driver_ranker/2",
        "Batch      rides_today scored with driver_ranker/2: 150 of 153 rows, 3 not_found",
        events[3],
        f"           preview and plots: {demo.dagit.url}/assets/batch_output?view=partitions&partition=rides_today",
    ]
    assert events[3].startswith("           150 of 153 rows differ from driver_ranker/1: by 0.")


def test_a_promotion_without_a_running_demo_is_one_clear_line(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    for ports in (None, {"dagit": free_port(), "api": free_port()}):  # never started, killed
        if ports:
            (tmp_path / "var").mkdir()
            (tmp_path / "var" / "running.json").write_text(json.dumps(ports))
        refused = demo.run("demo.promote")
        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert line.startswith("demo: the demo is not up: run `make demo`")
        assert not (tmp_path / "var" / "mlflow.db").exists()


def test_a_busy_port_is_one_clear_line(demo: Demo) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        servers = {"DAGIT_PORT": "Dagit", "MLFLOW_PORT": "MLflow", "SERVING_PORT": "the API"}
        for variable, server in servers.items():
            free = {name: str(free_port()) for name in servers}
            refused = demo.run("demo", "--once", **(free | {variable: port}))
            assert refused.returncode == 1
            (line,) = refused.stderr.splitlines()
            assert line.startswith(f"demo: {server} can't listen on port {port} of 127.0.0.1 (")


def test_a_wrong_setting_is_one_clear_line(demo: Demo) -> None:
    refused = demo.run("demo", "--once", SERVING_DEADLINE_S="soon")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("demo: SERVING_DEADLINE_S is 'soon'")
