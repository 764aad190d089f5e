"""CPU and memory of a process and of everything that it started, from /proc (Linux)."""

import os
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """`root` and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, new = [], [root]
    while new:
        found += new
        new = [child for parent in new for child in children.get(parent, [])]
    return found


def cpu_s(root: int) -> float:
    """User and system CPU seconds that the tree has taken so far, also those of descendants that have ended."""
    ticks = 0
    for process in tree(root):
        fields = _stat(process)
        # utime, stime, and the same of children that ended and were waited for.
        ticks += sum(int(each) for each in fields[11:15])
    return ticks / TICKS_PER_SECOND


def memory_mib(root: int) -> float:
    """Resident memory of the tree; a page that n processes share counts as 1/n of a page in each."""
    kib = 0
    for process in tree(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from `state` on; none where the process has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything
