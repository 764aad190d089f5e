"""No secret that the environment holds is told to anybody: not in logs, metrics, problems or Dagster's records."""

import datetime as dt
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._serdes import serialize_value

from scoring.feature_store import apply_definitions, materialize_online_store, open_feature_store
from serving_assets.definitions import definitions
from serving_assets.resources import Serving
from tests.compose import EXAMPLE_VALUES, services
from tests.e2e.api_server import ApiServer
from tests.e2e.dagster_servers import wait_until
from tests.servers import HOST, PostgresServer, RedisServer, free_port
from tests.worlds import World, build_driver_world

SECRETS = {name: value for name, value in EXAMPLE_VALUES.items() if name != "SERVING_MODEL_NAME"} | {
    "MLFLOW_TRACKING_PASSWORD": "tr4cking",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=c0llector",
}


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that asks for a password."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), password=SECRETS["REDIS_PASSWORD"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def world(
    guarded_redis: RedisServer, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """The example with Feast on servers, and an environment with every secret that docker-compose.yml knows."""
    world = build_driver_world(tmp_path_factory.mktemp("world"))
    world.environment |= services()["api"]["environment"] | services()["code-location"]["environment"]
    world.environment |= SECRETS | {
        "SERVING_FEATURE_REPO": str(world.folder / "feature_repo"),
        "SERVING_BATCH_REQUESTS": str(world.folder / "requests"),
        "SERVING_ARTIFACTS": str(world.folder / "artifacts"),
        "SERVING_HOST": HOST,
        "SERVING_DRAIN_S": "0",
        "SERVING_LOG_LEVEL": "debug",
        "FEATURE_DATA": "data",
        "MLFLOW_TRACKING_URI": f"sqlite:///{world.folder / 'mlflow.db'}",
        "FEAST_REGISTRY": f"postgresql+psycopg2://postgres:{SECRETS['FEAST_DB_PASSWORD']}@{HOST}:{postgres_server.port}/postgres",
        "FEAST_REDIS": guarded_redis.connection_string,
        "TMPDIR": str(world.folder),
    }
    del world.environment["SERVING_PORT"]  # each server has its own
    (world.folder / "requests").mkdir()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("FEAST_REGISTRY", "FEAST_REDIS"):
            environment.setenv(name, world.environment[name])
        apply_definitions(open_feature_store(world.settings))
        yield world


def check_silent(said: str) -> None:
    assert len(said) > 1000
    told = [name for name, secret in SECRETS.items() if secret in said]
    assert told == []


def test_the_api_tells_none_when_it_works_and_when_its_stores_are_gone(
    world: World, guarded_redis: RedisServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    materialize_online_store(open_feature_store(world.settings), world.now + dt.timedelta(hours=1))
    key = SECRETS["SERVING_API_KEYS"]
    api = ApiServer(tmp_path, environment=world.environment, key=key)
    said: list[str] = []

    def ask_everything() -> None:
        answers = [api.ask(), api.ask(b"{"), api.ask(Authorization="Bearer another"), api.ask(path="/scores")]
        answers += [api.get(path) for path in ("/live", "/ready", "/version", "/metrics", "/openapi.json", "/", "/env")]
        answers.append(api.ask(b"{}", "/webhooks/mlflow", **{"X-MLflow-Signature": "v1,no"}))
        said.extend(f"{answer.status_code} {dict(answer.headers)} {answer.text}" for answer in answers)

    api.start()
    try:
        ask_everything()
        assert said[0].startswith("200 ")
        with guarded_redis.stopped(), postgres_server.stopped():
            wait_until(lambda: api.get("/ready").status_code == 503, "the API to see that Redis is gone")
            wait_until(lambda: "registry_gives_no_answer" in api.log.read_text(), "the API to miss the registry")
            ask_everything()
            assert "503 " in "".join(said)
    finally:
        api.stop()
    check_silent("\n".join([*said, api.log.read_text()]))


BROKEN = {
    "an address without a port": ("FEAST_REGISTRY", "postgresql+psycopg2://feast:f3ast@127.0.0.1:port/feast"),
    "an address of nobody": ("FEAST_REGISTRY", f"postgresql+psycopg2://feast:f3ast@127.0.0.1:{free_port()}/feast"),
    "another scheme": ("FEAST_REGISTRY", "postgres://feast:f3ast@127.0.0.1/feast"),
    "no address": ("FEAST_REGISTRY", "f3ast"),
    "a wrong password": ("FEAST_REDIS", "{redis},password=red1s-and-more"),
    "no Redis": ("FEAST_REDIS", f"127.0.0.1:{free_port()},password=red1s"),
    "a parameter that there is not": ("FEAST_REDIS", "{redis},password=red1s,pasword=red1s"),
    "no port": ("FEAST_REDIS", "127.0.0.1,password=red1s"),
}


def run_batch(world: World, home: Path, key: str) -> tuple[dg.ExecuteInProcessResult, str]:
    """A whole run in this process, and all that Dagster keeps of it."""
    home.mkdir()
    request = world.folder / "requests" / f"{key}.csv"
    request.write_text(f"driver_id,event_timestamp\n1001,{world.now.isoformat()}\n")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.add_dynamic_partitions("batch_requests", [key])
        here = dg.Definitions(
            assets=definitions.assets,
            jobs=definitions.jobs,
            executor=definitions.executor,
            resources={"serving": Serving(world.environment)},
        )
        job: Any = here.resolve_job_def("serve_batch")
        result = job.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)
        events = [serialize_value(event) for event in instance.all_logs(result.run_id)]
        run = serialize_value(instance.get_run_by_id(result.run_id))
    files = [path.read_text(errors="replace") for path in home.rglob("*") if path.suffix in {".out", ".err", ".json"}]
    return result, "\n".join([run, *events, *files])


def test_dagster_keeps_none_of_a_run(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    result, kept = run_batch(world, tmp_path / "home", "works")
    assert result.success
    check_silent(kept + caplog.text + "".join(capfd.readouterr()))


@pytest.mark.parametrize("what", BROKEN)
def test_dagster_keeps_none_of_a_run_that_fails_over_it(
    world: World,
    guarded_redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    what: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    variable, value = BROKEN[what]
    monkeypatch.setenv(variable, value.format(redis=f"{HOST}:{guarded_redis.port}"))
    result, kept = run_batch(world, tmp_path / "home", "fails")
    sys.stdout.flush()
    assert not result.success
    check_silent(kept + caplog.text + "".join(capfd.readouterr()))
