"""`python -m benchmarks.profiles [graph join online predict start]`: break down time and memory behind the targets.

Each stage is measured separately and compared with the whole, on the files of `make bench`. Figures are medians of
ROUNDS.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.batch.task import OUTPUT
from benchmarks.environments import OURS, OURS_BATCH, build, python_of
from benchmarks.paths import ROOT
from benchmarks.quietly import quietly

ROWS, ROUNDS = 10_000_000, 3
WORK = ("graph", "join", "online", "predict", "start")
# Imported in this order, by functions of scoring.imports or by name: the memory of each excludes what the previous ones
# have already loaded.
IMPORTED = (
    "numpy",
    "pyarrow.compute",
    "pandas",
    "import_first",
    "import_for_serving",
    "import_feast",
    "api.app",
)
_PRINT_MEMORY = """
import importlib, sys, warnings
from scoring import imports
warnings.simplefilter("ignore")
def mib():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
before = mib()
print("python", round(before))
for name in sys.argv[1:]:
    getattr(imports, name, lambda: importlib.import_module(name))()
    now = mib()
    print(name, round(now - before))
    before = now
"""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds and CPU seconds."""
    taken = []
    for _ in range(ROUNDS):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - began, time.process_time() - cpu))
    return statistics.median(each for each, _ in taken), statistics.median(each for _, each in taken)


def print_time(name: str, work: Callable[[], object]) -> None:
    """Time the work and print a line."""
    seconds, cpu_s = timed(work)
    print(f"{name:44} {seconds:6.2f} s {cpu_s:6.2f} CPU s", flush=True)


def exhaust(items: Iterator[Any]) -> None:
    """Consume all items without keeping them."""
    collections.deque(items, maxlen=0)


def join() -> None:
    """Time the join: its stages, the product and the floor."""
    from benchmarks.batch.joins import BareAsof, BatchInput
    from scoring.batch.join import PointInTimeJoin
    from scoring.batch.request import read_batch_request

    whole, floor = BatchInput(ROWS), BareAsof(ROWS)
    whole.prepare()
    floor.prepare()
    request = whole.request

    def joined() -> Iterator[Any]:
        return PointInTimeJoin(whole.store, whole.features, request).tables()

    print_time("check the request", lambda: exhaust(read_batch_request(request, whole.features)))
    print_time("check, ASOF join and compare, without writing", lambda: exhaust(joined()))
    print_time("write", functools.partial(_write, list(itertools.islice(joined(), 8))))
    print_time("hash the request and the result", lambda: (_hash(request), _hash(whole.output)))
    print_time("the product", whole.run)
    print_time("the floor", floor.run)


def predict() -> None:
    """Time the prediction: its stages, the product and the baseline."""
    from benchmarks.batch.predictions import Baseline, BatchOutput
    from scoring.batch.engine import _tables
    from scoring.batch.scored_rows import TableScorer
    from scoring.files.location import Location

    whole, baseline = BatchOutput(ROWS), Baseline(ROWS)
    whole.prepare()
    baseline.prepare()

    def opened() -> pq.ParquetFile:
        return pq.ParquetFile(whole.input, pre_buffer=False, page_checksum_verification=True)

    def scored() -> Iterator[Any]:
        return TableScorer(whole.serving.model, whole.serving.features, whole.policy).scored(
            _tables(opened(), Location(whole.input))
        )

    print_time("decode", lambda: exhaust(_tables(opened(), Location(whole.input))))
    print_time("decode and score", lambda: exhaust(scored()))
    print_time("encode", functools.partial(_write, list(itertools.islice(scored(), 8))))
    print_time("hash the input and the result", lambda: (_hash(whole.input), _hash(whole.output)))
    print_time("the product", whole.run)
    print_time("the baseline", baseline.run)


def graph() -> None:
    """Time the graph through Dagster, inside and outside the functions that form its parts."""
    from dagster._core.instance.methods.event_methods import EventMethods
    from dagster._core.instance.runs.run_domain import RunDomain

    from benchmarks.batch.graph import ThroughDagster
    from scoring.batch.engine import LocalEngine
    from serving_assets.assets import plots

    whole = ThroughDagster(ROWS)
    with quietly():
        whole.prepare()
    with contextlib.ExitStack() as stack:
        clocks = {
            name: stack.enter_context(_clock(owner, function))
            for name, owner, function in (
                ("batch_input, with its checks", LocalEngine, "write_input"),
                ("batch_output, with its checks", LocalEngine, "write_output"),
                ("  the plot, drawn concurrently", plots, "_draw_histograms"),
                ("Dagster: storing the run", RunDomain, "create_run_for_job"),
                ("Dagster: storing its events", EventMethods, "handle_new_event"),
            )
        }
        with quietly():
            seconds, cpu_s = timed(whole.run)
        print(f"{'job score_batch':44} {seconds:6.2f} s {cpu_s:6.2f} CPU s")
    for name, taken in clocks.items():
        print(f"{name:44} {sum(taken) / ROUNDS:6.2f} s, {len(taken) // ROUNDS} times")


def online() -> None:
    """Sample the API's stacks under the load of `make bench`."""
    from benchmarks.online.profile import profile

    profile()


def start() -> None:
    """Measure the memory of the API's imports, in the API's environment."""
    build(OURS)
    command = [str(python_of(OURS)), "-c", _PRINT_MEMORY, *IMPORTED]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        name, mib = line.split()
        print(f"{name:44} {mib:>6} MiB")


@contextlib.contextmanager
def _clock(owner: Any, name: str) -> Iterator[list[float]]:
    original, taken = getattr(owner, name), []

    @functools.wraps(original)
    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            taken.append(time.perf_counter() - began)

    setattr(owner, name, measured)
    try:
        yield taken
    finally:
        setattr(owner, name, original)


def _write(tables: list[Any]) -> None:
    from scoring.batch.scored_rows import CONSTANTS
    from scoring.files.parquet import write_tables

    constants = [name for name in CONSTANTS if name in tables[0].column_names]
    needed = -(-ROWS // tables[0].num_rows)
    write_tables(itertools.islice(itertools.cycle(tables), needed), OUTPUT / "profile.parquet", {}, constants=constants)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(WORK)
    if len(wanted) > 1:  # each in a separate process, mostly in the environment of the batch image
        build(OURS_BATCH)
        for work in wanted:
            print(f"\n{work}" if work in {"online", "start"} else f"\n{work}, {ROWS:,} rows", flush=True)
            python = sys.executable if work == "online" else str(python_of(OURS_BATCH))
            subprocess.run([python, "-m", "benchmarks.profiles", work], cwd=ROOT, check=True)
    else:
        {"graph": graph, "join": join, "online": online, "predict": predict, "start": start}[wanted[0]]()
