"""Compare both batch engines on the same requests: `python -m benchmarks.engines 100000 1000000`.

docs/scaling.md shows a result. Spark runs in local mode, so both engines use the same cores. Each engine first does the
work once on few rows, which starts Spark and imports everything in its workers. CPU time includes all processes, even
those that have exited.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.batch.world import open_batch_world, request_of
from benchmarks.processes import cpu_s, memory_mib
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import Origin
from scoring.batch.request import copied_request
from scoring.engine import Engine
from scoring.features.feature_store import read_definitions
from scoring.files.location import Location
from scoring.models.registry import MlflowRegistry
from scoring.predict import Policy
from scoring.serving import load_serving_model, resolve_version
from scoring.spark.engine import SparkEngine

FEW = 10_000


def main(rows: list[int], memory: str, rows_per_part: int) -> None:
    """Print one line per engine and number of rows: the time of join and scoring."""
    world = open_batch_world()
    settings, store = world.settings, world.store()
    registry = MlflowRegistry.from_settings(settings)
    version = resolve_version(registry, settings)
    with tempfile.TemporaryDirectory() as folder:
        serving = load_serving_model(registry, store, version, settings, Path(folder) / "model")

        def join(engine: Engine, request: Location, artifacts: Location) -> None:
            with copied_request(request) as copy:
                origin = Origin(copy.content, str(version), serving.features.service, read_definitions(store).hash)
                engine.write_input(copy, origin, store, serving.features, artifacts)

        def run(engine: Engine, count: int) -> str:
            artifacts = Path(folder) / "artifacts"
            shutil.rmtree(artifacts, ignore_errors=True)
            request = Location(request_of(world, count))
            figures = []
            for step in (
                lambda: join(engine, request, Location(artifacts)),
                lambda: engine.write_output(Location(artifacts), serving, Policy()),
            ):
                cpu, began = cpu_s(os.getpid()), time.perf_counter()
                step()
                figures.append(f"{time.perf_counter() - began:.1f} s ({cpu_s(os.getpid()) - cpu:.1f} CPU s)")
            return "join {}, scoring {}".format(*figures)

        spark = SparkEngine("local[*]", {"spark.driver.memory": memory}, rows_per_part)
        for name, engine in (("local", LocalEngine()), ("spark", spark)):
            print(f"{name}: {FEW} rows, including startup: {run(engine, FEW)}", flush=True)
            for count in rows:
                print(f"{name}: {count} rows: {run(engine, count)}; {memory_mib(os.getpid()):.0f} MiB", flush=True)
        spark.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--memory", default="6g", help="spark.driver.memory")
    parser.add_argument("--rows-per-part", type=int, default=250_000)
    given = parser.parse_args()
    main(given.rows, given.memory, given.rows_per_part)
