"""Run monitoring learns from the code location whether a run's process still lives."""

import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import serialize_value

from serving_assets.run_launcher import CodeLocationRunLauncher, has_run
from tests.support.servers import HOST, free_port


class FakeCodeLocation:
    """The client of a code location that has these runs' processes."""

    def __init__(self, *runs: str) -> None:
        self.runs = runs

    def can_cancel_execution(self, request: CanCancelExecutionRequest) -> str:
        return serialize_value(CanCancelExecutionResult(can_cancel=request.run_id in self.runs))


def test_a_code_location_has_the_runs_that_it_started_and_no_others():
    assert has_run(FakeCodeLocation("mine"), "mine")
    assert not has_run(FakeCodeLocation("mine"), "from before it was restarted")


def test_a_code_location_that_does_not_answer_raises_an_error():
    launched_in = json.dumps({"host": HOST, "port": free_port()})
    run = dg.DagsterRun(job_name="score_batch", tags={GRPC_INFO_TAG: launched_in})
    with pytest.raises(DagsterUserCodeUnreachableError):
        CodeLocationRunLauncher().check_run_worker_health(run)


def test_a_run_that_was_never_launched_counts_as_running():
    health = CodeLocationRunLauncher().check_run_worker_health(dg.DagsterRun(job_name="score_batch"))
    assert health.status is WorkerStatus.RUNNING


def test_dagster_loads_it_as_its_launcher(tmp_path: Path):
    launcher = "run_launcher: {module: serving_assets.run_launcher, class: CodeLocationRunLauncher}\n"
    (tmp_path / "dagster.yaml").write_text(launcher + "run_monitoring: {enabled: true}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_launcher.supports_check_run_worker_health
        assert instance.run_monitoring_enabled
