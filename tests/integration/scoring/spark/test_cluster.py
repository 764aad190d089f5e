"""The Spark engine on a standalone cluster of separate processes, one of which is killed during a run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scoring.files.location import Location
from tests.integration.scoring.spark.orders import SPARK, World, table
from tests.support.servers import wait_until
from tests.support.spark import OPTIONS, SparkMaster, SparkWorker

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[4]
CLUSTER = SPARK | {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.executor.memory": "512m",
    "spark.executor.extraJavaOptions": OPTIONS,
    "spark.executorEnv.PYTHONPATH": str(ROOT),
    # Otherwise the executor that is left asks the killed one for its rows for 15 s.
    "spark.shuffle.io.maxRetries": "1",
    "spark.shuffle.io.retryWait": "100ms",
}


@pytest.fixture
def cluster(surroundings: None, tmp_path: Path) -> Iterator[tuple[SparkMaster, list[SparkWorker]]]:
    folders = [tmp_path / name for name in ("master", "one", "two")]
    for folder in folders:
        folder.mkdir()
    with SparkMaster(folders[0]) as master, ThreadPoolExecutor() as pool:
        workers = [SparkWorker(folder, master=master) for folder in folders[1:]]
        try:
            list(pool.map(SparkWorker.start, workers))
            yield master, workers
        finally:
            for worker in workers:
                worker.kill()


def test_a_worker_that_is_killed_during_a_run_takes_no_row_with_it(
    world: World, local: Location, cluster: tuple[SparkMaster, list[SparkWorker]], tmp_path: Path
) -> None:
    from scoring.spark.engine import SparkEngine

    master, workers = cluster
    folder = tmp_path / "artifacts"
    engine = SparkEngine(master.url, CLUSTER, rows_per_part=250)

    def kill_one_that_has_worked() -> None:
        wait_until(lambda: len(list(folder.glob("batch_input/*/part-*.parquet"))) > 2, "no part", 300)
        workers[0].kill()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one_that_has_worked)
        try:
            world.run(engine, Location(folder))
        finally:
            engine.stop()
        killed.result()

    # Both had an executor, and the master has lost one of them.
    assert all(list(worker.directory.glob("app-*/*/stderr")) for worker in workers)
    wait_until(lambda: not workers[0].answers(), "the master still counts on the killed worker")
    assert workers[1].answers()
    assert table(Location(folder)).equals(table(local))
