"""The services of docker-compose.yml without Docker: real servers on loopback, started once. The tests run in order.

Commands, environments, health checks and configuration files come from the compose file; `places.py` lists what is
replaced. The tests follow a team: install the example, batch, online, promotion, upgrade, then every outage.
"""

import io
import json
import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from pyarrow.fs import FileSelector

from tests.support import compose, full_stack, places, warm
from tests.support.dagster_servers import runs, wait_until
from tests.support.load import Load
from tests.support.servers import environment_for_servers, nginx_program
from tests.support.team import AUTHORIZATION, SENSORS, Team

# Starting everything takes a minute on a busy machine, and the first test does it.
pytestmark = pytest.mark.timeout(400)

# In .env, because a machine that starts servers does not respond within 0.3 s.
VARIABLES = compose.EXAMPLE_VALUES | {"SERVING_DEADLINE_S": "5", "SERVING_POLL_INTERVAL_S": "1"}
GUIDE = (compose.ROOT / "docs" / "deploy.md").read_text("utf-8")
DRIVERS = list(range(1001, 1051))
UNKNOWN_DRIVER = 9999
# The API polls the alias and the stores twice in this time.
OUTAGE_S = 2


@pytest.fixture(scope="module")
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    """The running, empty stack and its users."""
    nginx_program()
    # Not in pytest's directory, which other users can't read: under root, PostgreSQL and nginx run as other users.
    with tempfile.TemporaryDirectory(prefix="full-stack-") as directory, pytest.MonkeyPatch.context() as environment:
        Path(directory).chmod(0o755)
        with full_stack.up(Path(directory), VARIABLES) as stack:
            daemon = stack["daemon"].environment
            for name in daemon:
                environment.setenv(name, daemon[name])
            with dg.DagsterInstance.from_config(daemon["DAGSTER_HOME"]) as instance:
                team = Team(stack, instance)
                yield team
                team.http.close()
            if request.session.testsfailed:
                for process in stack.processes.values():
                    print(f"--- the end of {process.log.name}\n{process.log.read_text(errors='replace')[-3000:]}")
    mlflow.set_tracking_uri(None)


def test_the_suite_covers_every_service_key_and_variable_of_the_compose_file() -> None:
    services = compose.services()
    monitoring = {name for name, service in services.items() if service.get("profiles") == ["monitoring"]}
    assert set(services) == set(places.PORTS) | monitoring
    assert set().union(*services.values()) == places.TAKEN | places.OF_CONTAINERS
    for name in places.PORTS:
        assert set(services[name].get("environment", {})) == places.VARIABLES[name], name
    mounted = {volume.split(":")[0] for name in places.PORTS for volume in services[name].get("volumes", [])}
    files = {source.removeprefix("./") for source in mounted if (compose.ROOT / source).is_file()}
    assert files | set(places.IN_IMAGE.values()) == set(places.FILES)


def test_the_documented_commands_install_the_example_and_every_server_is_healthy(team: Team) -> None:
    register_webhook_as_documented(team)
    (command,) = re.findall(r"^docker compose run --rm code-location (python -m .+)$", GUIDE, re.MULTILINE)

    done = team.stack["code-location"].run(shlex.split(command))

    assert done.returncode == 0, done.stderr
    assert "driver_ranker/1" in done.stdout
    assert [each.name for each in team.stack.processes.values() if not each.healthy()] == []
    dagit = httpx.post(
        f"{team.stack.address('webserver')}/graphql",
        json={"query": "{workspaceOrError{...on Workspace{locationEntries{name locationOrLoadError{__typename}}}}}"},
        timeout=30,
    )
    assert dagit.json()["data"]["workspaceOrError"]["locationEntries"] == [
        {"name": "model_serving", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
    ]


def register_webhook_as_documented(team: Team) -> None:
    """Register the webhook before the first alias is set, because MLflow's workers reload webhooks once a minute.

    Docker's DNS would resolve to any replica; here it is always the first.
    """
    ((script),) = re.findall(r"code-location python - <<'PYTHON'\n(.+?)\nPYTHON\n", GUIDE, re.DOTALL)
    given = {"SECRET": VARIABLES["SERVING_WEBHOOK_SECRET"], "MLFLOW_TRACKING_URI": team.stack.address("mlflow")}
    # In a separate process, because an earlier test may have set another MLflow server in this one.
    script = team.stack.places.moved("code-location", script)
    done = warm.run(["-c", script], environment_for_servers() | given, team.stack.places.folder)
    assert done.returncode == 0, done.stderr


def test_the_sensor_scores_a_request_on_s3_equal_to_a_manual_computation(team: Team) -> None:
    team.wait_until_all_serve(1)

    request = pd.read_csv(io.BytesIO(team.read("batch_requests/rides_today.csv")))
    output = team.output()
    assert list(output["driver_id"]) == list(request["driver_id"])
    assert [run.tags["dagster/sensor_name"] for run in runs(team.instance)] == ["new_batch_request"]
    manifest = json.loads(team.read("artifacts/rides_today/manifest.json"))
    assert manifest["origin"]["model"] == "driver_ranker/1"
    assert (manifest["outcome"]["rows"], manifest["outcome"]["scored"]) == (153, 150)
    known = output[output["driver_id"] != UNKNOWN_DRIVER]
    np.testing.assert_allclose(known["prediction"], computed_manually(team, request), rtol=1e-12)
    assert set(output[output["driver_id"] == UNKNOWN_DRIVER]["reason"]) == {"not_found"}


def computed_manually(team: Team, request: pd.DataFrame) -> np.ndarray:
    """Return predictions for the request's known drivers, computed without the product."""
    rows = request[request["driver_id"] != UNKNOWN_DRIVER].reset_index(names="place")
    rows["event_timestamp"] = pd.to_datetime(rows["event_timestamp"], utc=True).astype("datetime64[us, UTC]")
    stats = pd.read_parquet(io.BytesIO(team.read("features/driver_stats.parquet")))
    stats["event_timestamp"] = stats["event_timestamp"].astype("datetime64[us, UTC]")
    joined = pd.merge_asof(
        rows.sort_values("event_timestamp"), stats.sort_values("event_timestamp"), on="event_timestamp", by="driver_id"
    ).sort_values("place")
    mlflow.set_tracking_uri(team.stack.address("mlflow"))
    model = mlflow.sklearn.load_model("models:/driver_ranker/1")
    return model.predict(joined[list(model.feature_names_in_)].astype("float64"))


def test_online_through_the_proxy_gives_the_score_of_batch_to_the_last_bit(team: Team) -> None:
    newest = team.output().groupby("driver_id")["prediction"].last().dropna().to_dict()

    assert team.scores(DRIVERS) == newest
    body = {"request_id": "uuid-1", "driver_ids": [*DRIVERS, UNKNOWN_DRIVER]}
    answer = httpx.post(f"{team.stack.url}/inference", json=body, headers=AUTHORIZATION)
    assert answer.json()["prediction"] == max(newest, key=lambda driver: newest[driver])
    assert answer.json()["excluded"] == [{"driver_id": UNKNOWN_DRIVER, "reason": "not_found"}]
    assert httpx.post(f"{team.stack.url}/inference", json=body).status_code == 401
    for path in ("/metrics", "/webhooks/mlflow"):
        assert httpx.get(team.stack.url + path).status_code == 404


def test_a_promoted_version_reaches_batch_and_both_replicas(team: Team) -> None:
    before = team.scores(DRIVERS)

    version = team.train(alpha=0.01)
    team.wait_until_all_serve(version)

    newest = team.output().groupby("driver_id")["prediction"].last().dropna().to_dict()
    assert team.scores(DRIVERS) == newest != before
    assert [run.tags["dagster/sensor_name"] for run in runs(team.instance)] == list(SENSORS)
    wait_until(lambda: "registry_event" in team.stack.replicas[0].log.read_text(), "MLflow's delivery")


def test_a_rolling_restart_of_both_replicas_under_load_fails_no_request(team: Team) -> None:
    with Load(team.stack["proxy"].port, clients=12) as load:
        for replica in team.stack.replicas:
            replica.stop()
            assert replica.status == 0
            replica.start()
            team.wait_until_ready(replica.name)
    assert load.failures == []
    assert load.answers > 100


@pytest.fixture(scope="module")
def before_outages(team: Team) -> "Kept":
    """The state before the outages."""
    return Kept(team)


class Kept:
    """The state of the servers that users rely on."""

    def __init__(self, team: Team) -> None:
        self.objects = team.objects()
        self.scores = team.scores(DRIVERS)
        self.runs = [(run.run_id, run.status) for run in runs(team.instance)]
        self.partitions = team.instance.get_dynamic_partitions("batch_requests")
        self.champion = team.world.client.get_model_version_by_alias("driver_ranker", "champion").version


def test_requests_are_refused_while_redis_is_down_and_its_data_survives(team: Team, before_outages: Kept) -> None:
    team.stack["redis"].stop()
    refused = team.ask(DRIVERS)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:model-serving:problem:feature-store-failed")
    assert int(refused.headers["Retry-After"]) >= 1
    team.stack["redis"].start()

    wait_until(lambda: team.ask(DRIVERS).status_code == 200, "answers after the outage")
    assert team.scores(DRIVERS) == before_outages.scores


def test_the_proxy_responds_as_soon_as_it_is_restarted(team: Team) -> None:
    team.stack["proxy"].stop()
    with pytest.raises(httpx.ConnectError):
        team.ask(DRIVERS)
    team.stack["proxy"].start()

    assert team.ask(DRIVERS).status_code == 200


# In this order, no restart hides a service that did not recover from another service's outage.
@pytest.mark.parametrize("name", ["webserver", "daemon", "code-location", "s3", "mlflow", "postgres"])
def test_requests_are_served_during_an_outage_and_batch_resumes_after_it(
    team: Team, before_outages: Kept, name: str
) -> None:
    with Load(team.stack["proxy"].port, clients=2) as load:
        team.stack[name].stop()
        time.sleep(OUTAGE_S)
        team.stack[name].start()
    assert load.failures == []
    if name != "webserver":  # only people use Dagit
        team.wait_for_good_ticks()


def test_the_outages_lost_nothing(team: Team, before_outages: Kept) -> None:
    kept = Kept(team)

    for what, before in vars(before_outages).items():
        assert getattr(kept, what) == before, what
    assert team.stack.ended == []


def test_a_killed_replica_fails_no_request_and_a_killed_run_is_retried(team: Team) -> None:
    known, rows = len(runs(team.instance)), team.output().shape[0]
    request = team.read("batch_requests/rides_today.csv")
    shorter = b"".join(request.splitlines(keepends=True)[:101])
    with team.bucket.open_output_stream("serving/batch_requests/rides_today.csv") as file:
        file.write(shorter)
    wait_until(lambda: len(runs(team.instance)) > known, "a run for the request's new content")
    killed = runs(team.instance)[-1].run_id
    wait_until(lambda: team.has_begun(killed, "batch_input"), "the run to read it")

    seen = {rows}
    with Load(team.stack["proxy"].port, clients=4) as load:
        team.stack["code-location"].crash()
        team.stack.replicas[0].crash()

        def scored_anew() -> bool:
            seen.add(team.output().shape[0])  # raises if it is not whole
            return all(run.is_finished for run in runs(team.instance)[known + 1 :] or [runs(team.instance)[-1]])

        wait_until(lambda: len(runs(team.instance)) > known + 1, "another run")
        wait_until(scored_anew, "its end")
        team.wait_until_ready(team.stack.replicas[0].name)
    assert load.failures == []
    assert seen == {rows, 100}
    ended = [run.status for run in runs(team.instance)[known:]]
    assert ended == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]
    assert runs(team.instance)[-1].parent_run_id == killed
    assert sorted(team.stack.ended) == ["api-1", "code-location"]


def test_every_answer_of_the_stack_is_what_batch_computes(team: Team) -> None:
    days = team.bucket.get_file_info(FileSelector("serving/prediction_log"))
    day = max(each.base_name for each in days).removeprefix("date=")
    command = (
        f"dagster asset materialize --select prediction_log,replay --partition {day} -m serving_assets.definitions"
    )

    done = team.stack["code-location"].run(shlex.split(command))

    assert done.returncode == 0, done.stderr
    event = team.instance.get_latest_materialization_event(dg.AssetKey("replay"))
    metadata = event.asset_materialization.metadata
    assert "| unexplained | 0 |" in metadata["causes"].value
    assert metadata["replayed_rows"].value > 1000
    assert set(metadata["versions"].value) == {"driver_ranker/1", "driver_ranker/2"}
