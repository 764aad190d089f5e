"""What each section measured, kept as JSON: a run can be resumed, and the page is made from the files."""

import datetime as dt
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.place import ROOT

# The code whose speed is measured. A commit that touches none of it leaves results as they are.
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
    """Where a section ran."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_before: float
    """Processes that wanted to run in the minute before: what else the machine did."""


class Result(msgspec.Struct, frozen=True):
    """One section's figures and where they come from."""

    section: str
    code: str
    """Commit of the code that was measured; with `+` where files had been changed since."""
    began: str
    """UTC."""
    took_s: float
    machine: Machine
    versions: dict[str, dict[str, str]]
    """Peer → package → version."""
    rows: list[dict[str, Any]]
    """What the section's own module makes of them."""


def save(folder: Path, result: Result) -> None:
    """Keep a result under its section's name, in place of an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{result.section}.json"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    part.replace(folder / f"{result.section}.json")


def read(folder: Path, section: str) -> Result | None:
    """What was kept of a section; None where it never ran."""
    try:
        return msgspec.json.decode((folder / f"{section}.json").read_bytes(), type=Result)
    except FileNotFoundError:
        return None


def code_version() -> str:
    """The last commit that touched the measured code, with `+` where it has been changed since."""
    commit = _git("log", "-1", "--format=%h", "--", *MEASURED_CODE)
    return commit + ("+" if _git("status", "--porcelain", "--", *MEASURED_CODE) else "")


def this_machine() -> Machine:
    """The machine that this process runs on."""
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
    """This moment, UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607 - the developer's own git
