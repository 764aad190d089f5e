"""Compare both batch engines on the same requests: `python -m benchmarks.engines 1000000 10000000`.

docs/scaling.md shows a result. Spark runs in local mode, so both engines use the same cores. Each engine first does the
work once on few rows, which starts Spark and imports everything in its workers. For each number of rows, the engines
take turns, and their results are compared to the last bit. CPU time includes all processes, also those that exited.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.batch.world import open_batch_world, request_of
from benchmarks.processes import cpu_s, memory_of, tree
from benchmarks.tables import number, table
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import Origin, output_parts
from scoring.batch.request import copied_request
from scoring.engine import Engine
from scoring.features.feature_store import read_definitions
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, RowsInTurn
from scoring.models.registry import MlflowRegistry
from scoring.predict import Policy
from scoring.serving import load_serving_model, resolve_version
from scoring.spark.engine import SparkEngine

FEW = 10_000
ROWS_COMPARED = 1 << 18


class Run(NamedTuple):
    """One engine's measurements for one request."""

    join_s: float
    join_cpu_s: float
    score_s: float
    score_cpu_s: float
    driver_mib: float
    """Peak memory of this process and, for Spark, its Java process."""
    workers_mib: float
    """Peak memory of Spark's Python workers."""

    @property
    def all_cpu_s(self) -> float:
        """CPU seconds of both steps."""
        return self.join_cpu_s + self.score_cpu_s


def main(rows: list[int], names: list[str], memory: str, rows_per_part: int, rounds: int) -> None:
    """Print the time of join and scoring, and the memory, of each engine and number of rows."""
    world = open_batch_world()
    settings, store = world.settings, world.store()
    registry = MlflowRegistry.from_settings(settings)
    version = resolve_version(registry, settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        serving = load_serving_model(registry, store, version, settings, folder / "model")

        def join(engine: Engine, request: Location, artifacts: Location) -> None:
            with copied_request(request) as copy:
                origin = Origin(copy.content, str(version), serving.features.service, read_definitions(store).hash)
                engine.write_input(copy, origin, store, serving.features, artifacts)

        def run(name: str, count: int) -> Run:
            engine, artifacts = engines[name], Location(folder / f"{name}-{count}")
            request = Location(request_of(world, count))
            figures: list[float] = []
            with _peaks() as peaks:
                for step in (
                    lambda: join(engine, request, artifacts),
                    lambda: engine.write_output(artifacts, serving, Policy()),
                ):
                    cpu, began = cpu_s(os.getpid()), time.perf_counter()
                    step()
                    figures += [time.perf_counter() - began, cpu_s(os.getpid()) - cpu]
            return Run(*figures, *peaks)

        spark = SparkEngine("local[2]", {"spark.driver.memory": memory}, rows_per_part)
        both: dict[str, Engine] = {"local": LocalEngine(), "spark": spark}
        engines = {name: both[name] for name in names}
        lines = [_line(FEW, each, [run(each, FEW)], None) for each in engines]
        print(lines, flush=True)
        for count in rows:
            runs: dict[str, list[Run]] = {each: [] for each in engines}
            for _ in range(rounds):
                for each in engines:
                    runs[each].append(run(each, count))
                    print(count, each, runs[each][-1], flush=True)
            places = [output_parts(Location(folder / f"{each}-{count}")) for each in engines]
            assert len(places) < 2 or _equal(*places), f"the results of {count} rows differ"  # noqa: S101
            base = statistics.median(each.all_cpu_s for each in runs["local"]) if "local" in runs else None
            lines += [_line(count, each, runs[each], base) for each in engines]
        head = (
            "rows",
            "engine",
            "join: CPU (wall), s",
            "scoring: CPU (wall), s",
            "x local CPU",
            "driver MiB",
            "workers MiB",
        )
        print(table(head, lines))
        spark.stop()


def _line(rows: int, engine: str, runs: list[Run], base: float | None) -> list[str]:
    middle = Run(*(statistics.median(each) for each in zip(*runs, strict=True)))
    return [
        f"{rows:,}",
        engine,
        f"{number(middle.join_cpu_s)} ({number(middle.join_s)})",
        f"{number(middle.score_cpu_s)} ({number(middle.score_s)})",
        number(middle.all_cpu_s / base) if base else "",
        number(middle.driver_mib),
        number(middle.workers_mib),
    ]


@contextlib.contextmanager
def _peaks() -> Iterator[list[float]]:
    """Provide a list that has the peak memory of the driver and of Spark's workers when the block ends."""
    peaks, done = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            processes = set(tree(os.getpid()))
            driver = {each for each in processes if each == os.getpid() or _program(each) == "java"}
            peaks[:] = map(max, peaks, map(memory_of, (driver, processes - driver)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peaks
    finally:
        done.set()
        watching.join()


def _program(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:  # it has exited
        return ""


def _equal(ours: list[Location], theirs: list[Location]) -> bool:
    """Return whether two results have the same rows, to the last bit."""
    with ParquetFiles(ours) as one, ParquetFiles(theirs) as other:
        streams = [RowsInTurn(each.between(0, each.rows), each.schema) for each in (one, other)]
        if one.rows != other.rows or not one.schema.equals(other.schema):
            return False
        for _ in range(0, one.rows, ROWS_COMPARED):
            pair = [each.take(ROWS_COMPARED).combine_chunks() for each in streams]
            bits = [each["prediction"].fill_null(0).to_numpy().tobytes() for each in pair]
            if not pair[0].equals(pair[1]) or bits[0] != bits[1]:
                return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--engines", nargs="+", choices=["local", "spark"], default=["local", "spark"])
    parser.add_argument("--memory", default="2g", help="spark.driver.memory")
    parser.add_argument("--rows-per-part", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each engine; the medians count")
    given = parser.parse_args()
    main(given.rows, given.engines, given.memory, given.rows_per_part, given.rounds)
