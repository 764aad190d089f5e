"""Clients of Triton, KServe and MLServer. `make test` installs them into an environment of their own.

Their requirements conflict with Feast's. KServe and MLServer cannot be imported into one process, because both register
the protobuf messages of the Open Inference Protocol. Either takes 2 s to import, so that one script should do many
requests.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".venv" / "clients" / "bin"
"""The folder of `python` and of `mlserver`."""


def run_script(script: str, *arguments: str, timeout_s: float = 60) -> Any:
    """Run a Python script in the environment and return what it printed on stdout, decoded from JSON.

    Args:
        script: its source.
        arguments: `sys.argv[1:]` of the script.
        timeout_s: after that time, the script is killed.

    Raises:
        AssertionError: the script failed. The message is its stderr.
    """
    return json.loads(run_program("python", "-c", script, *arguments, timeout_s=timeout_s))


def run_program(name: str, *arguments: str, timeout_s: float = 60) -> str:
    """Run a program of the environment and return its stdout; the rest is as for `run_script`."""
    # The packages are installed without bytecode. The first import writes it: 6 s, then 2 s.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [str(PROGRAMS / name), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
