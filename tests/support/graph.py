"""The asset graph in this process, with a world and a request folder."""

from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from serving_assets.assets.scores_table import scores_table
from serving_assets.definitions import definitions
from serving_assets.resources import Serving
from tests.support.worlds import World


class Graph:
    """The asset graph of a world, with its own Dagster instance, request folder and artifacts."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.requests, self.artifacts = folder / "requests", folder / "artifacts"
        self.requests.mkdir()
        # In memory: writing the fifty events of a run to files takes as long as the run.
        self.instance = dg.DagsterInstance.ephemeral(str(folder))
        self.environment = world.environment | {
            "SERVING_BATCH_REQUESTS": str(self.requests),
            "SERVING_ARTIFACTS": str(self.artifacts),
        }

    def write_request(self, text: str, key: str = "day1") -> None:
        (self.requests / f"{key}.csv").write_text(text)
        self.instance.add_dynamic_partitions("batch_requests", [key])

    def run(
        self,
        job: str = "score_batch",
        key: str = "day1",
        version: int | None = None,
        only: list[str] | None = None,
        serving: Serving | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        config = {"registered_model_version": {"config": {"version": version}}} if version else {}
        table = [scores_table] if "SERVING_SCORES_TABLE" in self.environment else []
        of_this_world = dg.Definitions(
            assets=[*definitions.assets, *table],
            jobs=definitions.jobs,
            executor=definitions.executor,
            resources={"serving": serving or Serving(self.environment)},
        )
        return of_this_world.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=None if tags else key,
            tags=tags,
            run_config={"ops": config},
            asset_selection=[dg.AssetKey(name) for name in only] if only else None,
            raise_on_error=False,
        )

    def file(self, name: str, key: str = "day1") -> Path:
        return self.artifacts / key / name

    def output(self, key: str = "day1") -> list[dict]:
        return pq.read_table(self.file("batch_output.parquet", key)).to_pylist()

    def stale(self, asset: str, key: str | None = None) -> bool:
        # Dagster has no public interface for this part of Dagit.
        resolver = CachingStaleStatusResolver(
            self.instance, definitions.resolve_asset_graph(), LoadingContextForTest(self.instance)
        )
        return resolver.get_status(dg.AssetKey(asset), key) is not StaleStatus.FRESH


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Return the message of the failed step."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure][:1]
    return event.step_failure_data.user_failure_data.description


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    made = result.asset_materializations_for_node(asset)
    (event,) = [each for each in made if each.asset_key == dg.AssetKey(asset)]
    return {name: value.value for name, value in event.metadata.items()}


def driver_rows(world: World, drivers: list[object]) -> str:
    rows = [f"{driver},{world.now.isoformat()},order-{i}" for i, driver in enumerate(drivers)]
    return "\n".join(["driver_id,event_timestamp,order", *rows]) + "\n"
