"""Results of each section, stored as JSON. They allow a run to be resumed, and the page is generated from them."""

import datetime as dt
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.paths import ROOT

# The code whose speed is measured. Results stay valid after a commit that does not change it.
OURS = (
    "scoring",
    "api",
    "serving_assets",
    "feature_repo",
    "requirements",
    "tests/support/worlds.py",
    "tests/support/servers.py",
)
MEASURED_CODE = (*OURS, "benchmarks/batch", "benchmarks/online", "benchmarks/peers")


class Machine(msgspec.Struct, frozen=True):
    """The machine that a section ran on."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_before: float
    """Load average of the minute before the section: other work on the machine."""


class Result(msgspec.Struct, frozen=True):
    """One section's figures and their provenance."""

    section: str
    code: str
    """Commit of the measured code, with `+` if there were uncommitted changes."""
    began: str
    """Start time, UTC."""
    took_s: float
    machine: Machine
    versions: dict[str, dict[str, str]]
    """Peer → package → version."""
    rows: list[dict[str, Any]]
    """Rounds, in the format of the section's own module."""


def save(folder: Path, result: Result) -> None:
    """Store a result under its section's name, replacing an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{result.section}.json"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    part.replace(folder / f"{result.section}.json")


def read(folder: Path, section: str) -> Result | None:
    """Return the stored result of a section, or None if there is none."""
    try:
        return msgspec.json.decode((folder / f"{section}.json").read_bytes(), type=Result)
    except FileNotFoundError:
        return None


def code_version() -> str:
    """Return the last commit that changed the measured code, with `+` if there are uncommitted changes."""
    commit = _git("log", "-1", "--format=%h", "--", *MEASURED_CODE)
    return commit + ("+" if _git("status", "--porcelain", "--", *MEASURED_CODE) else "")


def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    processor = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return Machine(
        processor=processor.group(1) if processor else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=round(os.getloadavg()[0], 1),
    )


def now() -> str:
    """Return the current time, UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607 - the developer's own git
