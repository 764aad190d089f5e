"""No secret of the environment appears in logs, metrics, problems or Dagster's records."""

import dataclasses
import datetime as dt
import logging
import traceback
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._serdes import serialize_value

from api.model.loading import RegistryLoader
from api.model.scorer import Scorer
from scoring.errors import ServingError
from scoring.models.registry import MlflowRegistry
from serving_assets.definitions import definitions
from serving_assets.resources import Serving
from tests.support.api_server import ApiServer
from tests.support.compose import EXAMPLE_VALUES, services
from tests.support.dagster_servers import wait_until
from tests.support.servers import HOST, PostgresServer, RedisServer, free_port
from tests.support.worlds import World

SECRETS = {name: value for name, value in EXAMPLE_VALUES.items() if name != "SERVING_MODEL_NAME"} | {
    "MLFLOW_TRACKING_PASSWORD": "tr4cking",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=c0llector",
}


@pytest.fixture
def world(world_on_servers: World) -> World:
    """The example with Feast on servers, and an environment with every secret that docker-compose.yml knows."""
    folder = world_on_servers.folder
    compose = services()["api"]["environment"] | services()["code-location"]["environment"]
    del compose["SERVING_PORT"]  # each server has its own
    here = {
        "SERVING_HOST": HOST,
        "SERVING_DRAIN_S": "0",
        "SERVING_LOG_LEVEL": "debug",
        "FEATURE_DATA": "data",
        "TMPDIR": str(folder),
    }
    return dataclasses.replace(world_on_servers, environment=compose | world_on_servers.environment | SECRETS | here)


def check_no_secret(output: str) -> None:
    assert len(output) > 500
    leaked = [name for name, secret in SECRETS.items() if secret in output]
    assert leaked == []


def test_the_api_tells_none_when_it_works_and_when_its_stores_are_gone(
    world: World, guarded_redis: RedisServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    key = SECRETS["SERVING_API_KEYS"]
    api = ApiServer(tmp_path, environment=world.environment, key=key)
    output: list[str] = []

    def ask_everything() -> None:
        answers = [api.ask(), api.ask(b"{"), api.ask(Authorization="Bearer another"), api.ask(path="/scores")]
        answers += [api.get(path) for path in ("/live", "/ready", "/version", "/metrics", "/openapi.json", "/", "/env")]
        answers.append(api.ask(b"{}", "/webhooks/mlflow", **{"X-MLflow-Signature": "v1,no"}))
        output.extend(f"{answer.status_code} {dict(answer.headers)} {answer.text}" for answer in answers)

    api.start()
    try:
        ask_everything()
        assert output[0].startswith("200 ")
        with guarded_redis.stopped(), postgres_server.stopped():
            wait_until(lambda: api.get("/ready").status_code == 503, "the API to see that Redis is gone")
            wait_until(lambda: "registry_failed" in api.log.read_text(), "the API to miss the registry")
            ask_everything()
            assert "503 " in "".join(output)
    finally:
        api.stop()
    check_no_secret("\n".join([*output, api.log.read_text()]))


BROKEN = {
    "an address without a port": ("FEAST_REGISTRY", "postgresql+psycopg2://feast:f3ast@127.0.0.1:port/feast"),
    "a closed port": ("FEAST_REGISTRY", f"postgresql+psycopg2://feast:f3ast@127.0.0.1:{free_port()}/feast"),
    "another scheme": ("FEAST_REGISTRY", "postgres://feast:f3ast@127.0.0.1/feast"),
    "no address": ("FEAST_REGISTRY", "f3ast"),
    "a wrong password": ("FEAST_REDIS", "{redis},password=red1s-and-more"),
    "no Redis": ("FEAST_REDIS", f"127.0.0.1:{free_port()},password=red1s"),
    "a parameter that there is not": ("FEAST_REDIS", "{redis},password=red1s,pasword=red1s"),
    "no port": ("FEAST_REDIS", "127.0.0.1,password=red1s"),
}

KIND = {"a wrong password": "it refused the user or password", "no Redis": "it refused the connection"}


def run_batch(world: World, home: Path, key: str) -> tuple[dg.ExecuteInProcessResult, str]:
    """A whole run in this process, and all that Dagster keeps of it."""
    home.mkdir()
    (requests := world.folder / "batch_requests").mkdir(exist_ok=True)
    request = requests / f"{key}.csv"
    request.write_text(f"driver_id,event_timestamp\n1001,{world.now.isoformat()}\n")
    with dg.DagsterInstance.local_temp(str(home), {"telemetry": {"enabled": False}}) as instance:
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


def test_dagster_keeps_none_of_a_run_that_works_and_of_one_that_fails(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    works, kept = run_batch(world, tmp_path / "works", "works")
    monkeypatch.setenv(*BROKEN["a closed port"])
    fails, kept_too = run_batch(world, tmp_path / "fails", "fails")
    assert (works.success, fails.success) == (True, False)
    check_no_secret(kept + kept_too + caplog.text + "".join(capfd.readouterr()))


@pytest.mark.parametrize("what", BROKEN)
def test_no_store_error_contains_a_secret(
    applied_world: World,
    online_scorer: Scorer,
    guarded_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    for name in ("FEAST_REGISTRY", "FEAST_REDIS"):
        monkeypatch.setenv(name, applied_world.environment[name])
    variable, value = BROKEN[what]
    monkeypatch.setenv(variable, value.format(redis=f"{HOST}:{guarded_redis.port}"))
    with pytest.raises(ServingError) as raised:
        load_and_look_up(applied_world, online_scorer)
    # Also what led to it: a log may hold the whole chain.
    check_no_secret("".join(traceback.format_exception(raised.value)))
    # /ready is public: it names the kind of failure and no address.
    assert HOST not in raised.value.public
    assert KIND.get(what, "") in raised.value.public


def load_and_look_up(world: World, current: Scorer) -> None:
    loader = RegistryLoader(world.settings, MlflowRegistry.from_settings(world.settings))
    loader.load(loader.poll(), current).look_up({"driver_id": [1001]}, dt.datetime.now(dt.UTC))
