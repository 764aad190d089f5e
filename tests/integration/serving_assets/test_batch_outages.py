"""A service goes down during a run: the run fails with the cause, the old output stays, and a retry succeeds."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring.batch.manifest import read_manifest
from scoring.files.location import Location
from serving_assets.resources import Serving
from tests.support.graph import Graph, driver_rows, failure, metadata
from tests.support.s3 import make_bucket, put
from tests.support.servers import MlflowServer, S3Server, free_port
from tests.support.worlds import World, build_driver_world, register_driver_model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> World:
    """Two versions in an MLflow server, the first one promoted."""
    built = build_driver_world(tmp_path_factory.mktemp("drivers"), registry=mlflow_server.uri, model="outage_ranker")
    register_driver_model(built, alpha=0.1, promote=False)
    return built


@pytest.fixture
def graph(world: World, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """One request and its artifacts in a bucket of this test's own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"outage{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}"
    make_bucket(s3_server, bucket)
    made = Graph(world, tmp_path)
    made.environment |= {
        "SERVING_ARTIFACTS": f"s3://{bucket}/artifacts",
        "SERVING_BATCH_REQUESTS": f"s3://{bucket}/requests",
    }
    made.write_request(driver_rows(world, [1003, 9999, 1001]))
    put(made.requests / "day1.csv", Location(f"s3://{bucket}/requests/day1.csv"))
    return made


class OutageAtOpening(Serving):
    """A run's resource, with an outage that begins when the feature store is opened for the nth time.

    batch_input opens it first, batch_output second.
    """

    def __init__(self, environment: dict[str, str], outage: contextlib.AbstractContextManager[None], nth: int) -> None:
        super().__init__(environment)
        self.outage = outage
        self.left = nth

    def open_feature_store(self):
        self.left -= 1
        if self.left == 0:
            self.outage.__enter__()
        return super().open_feature_store()


@pytest.mark.parametrize(
    ("gone", "nth", "cause"),
    [
        ("registry", 2, "The MLflow registry at http://127.0.0.1:{mlflow} did not respond"),
        ("offline store", 1, "The feature store failed while .*driver_stats"),
        ("object store", 1, "Looking at s3://.*/requests/day1.csv failed"),
        ("object store", 2, "Looking at s3://.*/day1/batch_input.parquet failed"),
    ],
)
def test_an_outage_during_a_run_fails_it_with_the_cause_and_a_retry_succeeds(
    graph, mlflow_server, monkeypatch, gone, nth, cause
):
    assert graph.run(version=1).success
    output = Location(graph.environment["SERVING_ARTIFACTS"]) / "day1" / "batch_output.parquet"
    before = output.read_bytes()
    outage = {
        "registry": mlflow_server.stopped(),
        "offline store": moved_away(graph.world.folder / "feature_repo" / "data" / "driver_stats.parquet"),
        "object store": unreachable(monkeypatch),
    }[gone]

    result = graph.run(version=2, serving=OutageAtOpening(graph.environment, outage, nth))
    outage.__exit__(None, None, None)

    message = failure(result)
    assert "\n" not in message
    assert re.search(cause.format(mlflow=mlflow_server.port), message), message
    assert output.read_bytes() == before
    retried = graph.run(version=2)
    assert retried.success
    page = f"{mlflow_server.uri}/#/models/outage_ranker/versions/2"
    assert metadata(retried, "batch_output")["model_page"] == page
    assert output.read_bytes() != before
    assert read_manifest(output).origin.model == "outage_ranker/2"


@contextlib.contextmanager
def moved_away(file: Path) -> Iterator[None]:
    elsewhere = file.rename(file.with_suffix(".away"))
    try:
        yield
    finally:
        elsewhere.rename(file)


@contextlib.contextmanager
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as network:
        network.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
        yield
