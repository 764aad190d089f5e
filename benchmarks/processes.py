"""CPU and memory of a process and all its descendants, from /proc (Linux)."""

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """Return `root` and all its living descendants."""
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
    """Return the tree's user and system CPU seconds so far, including descendants that have exited."""
    ticks = 0
    for process in tree(root):
        fields = _stat(process)
        # utime and stime, then the same for children that exited and were waited for.
        ticks += sum(int(each) for each in fields[11:15])
    return ticks / TICKS_PER_SECOND


def memory_mib(root: int) -> float:
    """Return the tree's resident memory."""
    return memory_of(tree(root))


def memory_of(processes: Iterable[int]) -> float:
    """Return the resident memory in MiB. A page shared by n processes counts as 1/n of a page in each."""
    kib = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has exited
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat from `state` on; empty if the process has exited."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the process name may contain anything
