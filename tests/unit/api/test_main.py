"""`python -m api` as a process: its imports, its stop signals, and its errors at startup."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_the_app_loads_no_dagster_and_nothing_slow() -> None:
    program = (
        "import sys, api.__main__; print(*sorted({'api.app', 'litestar'} & sys.modules.keys())); "
        "import api.app, api.model.loading; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'dagster', 'feast', 'mlflow', 'sklearn', 'pandas', 'scipy', 'serving_assets', 'demo'}))"
    )
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stop_signal_during_the_imports_ends_the_process_at_once_without_output(
    stop: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "api"],  # reports its progress on standard error
        cwd=ROOT,
        env=os.environ | {"SERVING_MODEL_NAME": "m"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.endswith(" pyarrow.lib\n"))
        process.send_signal(stop)
        output = process.stderr.read()
    assert process.returncode == status
    assert [line for line in output.splitlines() if not line.startswith("import time:")] == []
    assert " api.app\n" not in output


def test_a_wrong_setting_is_reported_in_one_line_that_names_the_variable() -> None:
    result = run("-m", "api", SERVING_MODEL_NAME="m", SERVING_PORT="eighty")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "SERVING_PORT" in result.stderr


def test_a_port_in_use_is_reported_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("-m", "api", SERVING_MODEL_NAME="m", SERVING_PORT=str(port))
    assert result.returncode == 1
    assert result.stderr == f"api: 127.0.0.1:{port} is already in use: set SERVING_PORT to a free port.\n"


def test_an_address_of_another_machine_is_reported_in_one_sentence() -> None:
    result = run("-m", "api", SERVING_MODEL_NAME="m", SERVING_HOST="203.0.113.9", SERVING_ALLOW_ANONYMOUS="true")
    assert result.returncode == 1
    assert result.stderr == (
        "api: can't listen on 203.0.113.9:8172 (Cannot assign requested address): set SERVING_HOST and SERVING_PORT to "
        "a free address.\n"
    )
