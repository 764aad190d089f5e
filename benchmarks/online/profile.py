"""The CPU time of a request in each package, with the libraries that it has called.

py-spy samples the stacks from another process, so that the API runs as always. It is no dependency: install it so that
it is on PATH (0.4).
"""

import collections
import re
import subprocess
from pathlib import Path

from benchmarks.online.contestants import Contestant, Ours, OursRanking
from benchmarks.online.fleet import Fleet, fleet
from benchmarks.online.rounds import Workload, process_of
from benchmarks.online.sections import WORKLOADS, title
from benchmarks.online.wrk import run_wrk
from benchmarks.paths import ROOT, VAR
from benchmarks.processes import cpu_s

SECTIONS = {"online-5": Ours, "online-100": Ours, "online-1000-candidates": OursRanking}
SECONDS, SAMPLES_PER_S = 15, 400
OWN = re.compile(rf"\({re.escape(str(ROOT))}/((?:api|scoring)(?:/[a-z_]+)?)[/.]")
# Threads that wait for work, and the event loop, which does so in C.
WAITING = re.compile(r"^(_worker|MicroBatcher\._work|Runner\.run|wait|select) \(")


def profile() -> None:
    """Print the CPU time of a request, and the share of each package in what is spent in our packages."""
    for section, kind in SECTIONS.items():
        workload = WORKLOADS[section]
        with fleet(workload.store, workload.model, [kind]) as running:
            cpu_us, samples = _sampled(running, running.contestants[0], workload)
        print(
            f"{title(section)}: {cpu_us:.0f} µs of CPU per request, with uvicorn and the event loop; of our packages:"
        )
        for package, count in samples.most_common():
            print(f"{package:44} {count / samples.total():6.1%}")


def _sampled(running: Fleet, contestant: Contestant, workload: Workload) -> tuple[float, collections.Counter[str]]:
    """Return a request's CPU time in µs, and the number of samples in each of our packages."""
    pid, output = process_of(contestant), VAR / "stacks.txt"
    template = contestant.template.replace("COUNT", str(workload.ids))

    def load(seconds: float) -> int:
        return run_wrk(
            contestant.url, template, workload.ids, running.drivers, workload.connections, seconds, seed=1
        ).requests

    load(1)
    before = cpu_s(pid)
    requests = load(SECONDS)  # without the sampler, which stops the process for each sample
    cpu_us = (cpu_s(pid) - before) * 1e6 / requests
    command = [
        "py-spy", "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_S), "--duration", str(SECONDS),
        "--format", "raw", "--full-filenames", "--output", str(output),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sampler:
        load(SECONDS + 2)
    if sampler.returncode:
        raise subprocess.CalledProcessError(sampler.returncode, command)
    return cpu_us, _by_package(output)


def _by_package(stacks: Path) -> collections.Counter[str]:
    """Count samples by the innermost frame of our packages. Each line has a stack, outermost first, and a count."""
    counts: collections.Counter[str] = collections.Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own = [found[1] for frame in frames if (found := OWN.search(frame)) and "__main__" not in frame]
        if own and not WAITING.match(frames[-1]):
            counts[own[-1]] += int(count)
    return counts
