"""Duration of the sensor tick and of the scoring of a thousand request files, with one run at a time.

`python -m benchmarks.many_requests [files]`: 20 rows per file, an ElasticNet, all state in SQLite files.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from tests.support.dagster_servers import Daemon, runs, ticks, wait_for_ticks, wait_until
from tests.support.worlds import World, build_driver_world

QUEUE = """
run_coordinator:
  module: dagster._core.run_coordinator
  class: QueuedRunCoordinator
concurrency:
  runs:
    max_concurrent_runs: 1
telemetry:
  enabled: false
"""


def main(count: int) -> None:
    """Print the progress in seconds since the daemon started."""
    folder = Path(tempfile.mkdtemp(prefix="many-requests-"))
    world = build_driver_world(folder / "world")
    requests = folder / "world" / "batch_requests"
    requests.mkdir()
    write_requests(world, requests, count)
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(QUEUE)
    daemon = Daemon(folder, environment=world.environment | {"DAGSTER_HOME": str(home)})
    daemon.start()
    started = time.monotonic()
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            wait_until(lambda: runs(instance), "the first run", within_s=120)
            print(f"first run requested after {time.monotonic() - started:.0f} s")
            outputs = world.folder / "artifacts"
            wait_until(lambda: len(list(outputs.glob("*/manifest.json"))) == count, "all outputs", within_s=1800)
            wait_until(lambda: all(run.is_finished for run in runs(instance)), "the end of all runs", within_s=120)
            print(f"all {count} files scored after {time.monotonic() - started:.0f} s")
            wait_for_ticks(instance, "new_batch_request", "new_model_version")
            print_runs(instance)
    finally:
        daemon.stop()
    shutil.rmtree(folder)


def write_requests(world: World, folder: Path, count: int) -> None:
    """Write files of 20 rows each with the same timestamp, as an export would."""
    rows = "".join(f"{1001 + number % 20},{world.now.isoformat()}\n" for number in range(20))
    for number in range(count):
        (folder / f"r{number:04}.csv").write_text(f"driver_id,event_timestamp\n{rows}")
    time.sleep(4)  # until the sensor treats them as complete


def print_runs(instance: dg.DagsterInstance) -> None:
    """Print each run and the duration of the longest tick."""
    for run in runs(instance):
        stats = instance.get_run_stats(run.run_id)
        took_s = (stats.end_time or 0) - (stats.start_time or 0)
        steps = ", ".join(
            f"{step.step_key} {(step.end_time or 0) - (step.start_time or 0):.0f} s"
            for step in instance.get_run_step_stats(run.run_id)
        )
        print(
            f"run of {run.tags['dagster/asset_partition_range_start']}...: {run.status.value}, {took_s:.0f} s ({steps})"
        )
    longest = max(tick.end_timestamp - tick.timestamp for tick in ticks(instance, "new_batch_request"))
    print(f"longest tick, including its run requests: {longest:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
