"""Launch runs in the code location, as Dagster's default launcher does, and detect lost runs.

Dagster's run monitoring asks the launcher whether a run's process is alive. The default launcher can't tell (dagster
1.13): a run whose code location was killed or replaced stays `started` and occupies its slot until its maximum runtime
is over. This launcher asks the code location, which tracks its child processes. In dagster.yaml:

    run_launcher: {module: serving_assets.run_launcher, class: CodeLocationRunLauncher}
"""

import json
from typing import TYPE_CHECKING

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

if TYPE_CHECKING:
    from dagster._grpc.client import DagsterGrpcClient


class CodeLocationRunLauncher(DefaultRunLauncher):
    """The default run launcher with a health check of run processes."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Return True."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return whether the code location that launched the run still has its process.

        Raises:
            DagsterUserCodeUnreachableError: the code location does not respond. The daemon logs it and asks again.
        """
        launched_in = run.tags.get(GRPC_INFO_TAG)
        if launched_in is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if has_run(client_at(launched_in), run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "The code location was restarted and no longer has this run.")


def client_at(launched_in: str) -> "DagsterGrpcClient":
    """Return a client of the code location in a run's tag (JSON)."""
    from dagster._grpc.client import DagsterGrpcClient

    where = json.loads(launched_in)
    return DagsterGrpcClient(
        host=where["host"], port=where.get("port"), socket=where.get("socket"), use_ssl=bool(where.get("use_ssl"))
    )


def has_run(client: "DagsterGrpcClient", run_id: str) -> bool:
    """Return whether the code location has a live process for the run."""
    from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
    from dagster._serdes import deserialize_value

    answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id))
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel
