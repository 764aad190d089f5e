"""Worlds that several modules share."""

import datetime as dt
from collections.abc import Iterator

import psycopg2
import pytest

from api.model.loading import RegistryLoader
from api.model.scorer import Scorer
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.models.registry import MlflowRegistry
from tests.support.compose import EXAMPLE_VALUES
from tests.support.servers import PostgresServer, RedisServer
from tests.support.worlds import World, build_driver_world


@pytest.fixture(scope="session")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that asks for a password."""
    with RedisServer(tmp_path_factory.mktemp("redis"), password=EXAMPLE_VALUES["REDIS_PASSWORD"]) as server:
        yield server


@pytest.fixture(scope="session")
def applied_world(
    guarded_redis: RedisServer, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> World:
    """The example with feature_store.redis.yaml: Feast's registry in a PostgreSQL, its online store in a Redis."""
    connection = psycopg2.connect(postgres_server.url)
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE feast_registry")
    connection.close()
    world = build_driver_world(tmp_path_factory.mktemp("world"))
    password, address = EXAMPLE_VALUES["FEAST_DB_PASSWORD"], f"{postgres_server.host}:{postgres_server.port}"
    world.environment |= {
        "SERVING_FEATURE_STORE_YAML": "feature_store.redis.yaml",
        "FEAST_REGISTRY": f"postgresql+psycopg2://postgres:{password}@{address}/feast_registry",
        "FEAST_REDIS": guarded_redis.connection_string,
    }
    with pytest.MonkeyPatch.context() as environment:
        set_stores(world, environment)
        apply_definitions(open_feature_store(world.settings))
    return world


@pytest.fixture
def world_on_servers(applied_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The same, with this process's environment naming the servers, and with features in the online store."""
    set_stores(applied_world, monkeypatch)
    day = dt.timedelta(days=1)
    open_feature_store(applied_world.settings).materialize(applied_world.now - 2 * day, applied_world.now + day)
    return applied_world


@pytest.fixture(scope="session")
def online_scorer(applied_world: World) -> Scorer:
    """What the API serves that world's champion with."""
    with pytest.MonkeyPatch.context() as environment:
        set_stores(applied_world, environment)
        loader = RegistryLoader(applied_world.settings, MlflowRegistry.from_settings(applied_world.settings))
        return loader.load(loader.poll(), None)


def set_stores(world: World, environment: pytest.MonkeyPatch) -> None:
    for name in ("FEAST_REGISTRY", "FEAST_REDIS"):
        environment.setenv(name, world.environment[name])
