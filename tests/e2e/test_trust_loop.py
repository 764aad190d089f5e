"""100,000 requests while versions, features and definitions change: a replay explains every difference."""

import asyncio
import contextlib
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvloop

from scoring.features.feature_store import apply_definitions
from scoring.features.materialize import materialize_online_store
from scoring.files.location import Location
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.replay import replay
from tests.support.api_server import ApiServer, Connection
from tests.support.servers import MlflowServer, RedisServer, wait_until
from tests.support.worlds import World, build_driver_world, register_driver_model

REQUESTS = 100_000
CONNECTIONS = 8
"""Per replica."""
FRESH = range(1001, 1041)
PUSHED = range(1041, 1051)
"""Drivers with new rows that are materialized a little later."""
LATE = range(1051, 1056)
"""Drivers of whom an older row arrives after the answers."""
OLD = range(1056, 1061)
"""Drivers with rows of 30 hours ago, within the first time to live and past the second."""
RENEWED = range(1061, 1066)
"""As OLD, and the offline store has newer rows."""
EXPIRING = range(1066, 1106)
"""Drivers whose rows pass the second time to live while the test runs."""
UNKNOWN = range(9001, 9006)
RANDOM = np.random.default_rng(7)
DRIVERS = [*FRESH, *PUSHED, *LATE, *OLD, *RENEWED, *EXPIRING, *UNKNOWN]


def stats(ids: range, event: dt.datetime | list[dt.datetime], created: dt.datetime) -> pd.DataFrame:
    times = pd.to_datetime(event if isinstance(event, list) else [event] * len(ids), utc=True)
    return pd.DataFrame(
        {
            "event_timestamp": times.as_unit("us"),
            "driver_id": np.asarray(ids),
            "conv_rate": RANDOM.random(len(ids), dtype=np.float32),
            "acc_rate": RANDOM.random(len(ids), dtype=np.float32),
            "avg_daily_trips": RANDOM.integers(0, 1000, len(ids)),
            "created": pd.to_datetime([created] * len(ids), utc=True).as_unit("us"),
        }
    )


def add_rows(world: World, *rows: pd.DataFrame) -> None:
    file = world.folder / "feature_repo" / "data" / "driver_stats.parquet"
    pd.concat([pd.read_parquet(file), *rows]).to_parquet(file, index=False)


def set_ttl(world: World, days: int) -> None:
    file = world.folder / "feature_repo" / "definitions.py"
    before = file.read_text()
    after = before.replace("ttl=timedelta(days=1)", f"ttl=timedelta(days={days})")
    file.write_text(after.replace("ttl=timedelta(days=2)", f"ttl=timedelta(days={days})"))
    apply_definitions(world.store())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer, redis_server: RedisServer) -> World:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    hour, yesterday = now - dt.timedelta(hours=1), now - dt.timedelta(hours=30)
    expiring = [now - dt.timedelta(days=1) + dt.timedelta(seconds=4 * place) for place in range(len(EXPIRING))]
    rows = [stats(ids, hour, hour) for ids in (FRESH, PUSHED, LATE)]
    rows += [stats(OLD, yesterday, hour), stats(RENEWED, yesterday, hour), stats(EXPIRING, expiring, hour)]
    world = build_driver_world(
        tmp_path_factory.mktemp("drivers"),
        redis=f"{redis_server.connection_string},db=13",
        registry=mlflow_server.uri,
        stats=pd.concat(rows),
        model="trusted_ranker",
    )
    set_ttl(world, days=2)
    materialize_online_store(world.store(), dt.datetime.now(dt.UTC), everything=True)
    return world


@pytest.fixture
def replicas(tmp_path: Path, world: World) -> Iterator[list[ApiServer]]:
    environment = world.environment | {
        "SERVING_PREDICTION_LOG": str(tmp_path / "log"),
        "SERVING_PREDICTION_LOG_SECONDS": "5",
        "SERVING_POLL_INTERVAL_S": "1",
        "SERVING_DEADLINE_S": "20",
        "SERVING_DRAIN_S": "0",
        "SERVING_LOG_LEVEL": "warning",
    }
    servers = [ApiServer(tmp_path / name, environment=environment) for name in ("a", "b")]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as starting:
        for server in servers:
            server.directory.mkdir()
        list(starting.map(stack.enter_context, servers))
        yield servers


async def send(replicas: list[ApiServer], numbers: Iterator[int]) -> Counter[int]:
    """Send the requests with these numbers, one driver each, over all connections. Return status → responses."""
    statuses: Counter[int] = Counter()

    async def client(port: int) -> None:
        async with Connection(port) as connection:
            for number in numbers:
                body = {"request_id": str(number), "driver_ids": [DRIVERS[number % len(DRIVERS)]]}
                answer = await connection.ask("POST", "/scores", json.dumps(body).encode())
                statuses[answer.status] += 1

    await asyncio.gather(*(client(server.port) for server in replicas for _ in range(CONNECTIONS)))
    return statuses


def served(replica: ApiServer) -> tuple[int, str]:
    facts = replica.get("/version").json()
    return facts["model"]["version"], facts["definitions"]


def changes(world: World, replicas: list[ApiServer]) -> list[Callable[[], None]]:
    """Return what happens during each part of the requests but the first."""
    now = dt.datetime.now(dt.UTC)
    definitions = served(replicas[0])[1]

    def until_all(condition: Callable[[ApiServer], bool]) -> None:
        wait_until(lambda: all(map(condition, replicas)), lambda: str([served(each) for each in replicas]), 60)

    def swap_version() -> None:
        version = register_driver_model(world, alpha=0.01)
        until_all(lambda each: served(each)[0] == version)

    def reapply_definitions() -> None:
        set_ttl(world, days=1)
        until_all(lambda each: served(each)[1] != definitions)

    def push_rows() -> None:
        pushed = dt.datetime.now(dt.UTC)
        add_rows(world, stats(PUSHED, pushed, pushed))
        materialize_online_store(world.store(), dt.datetime.now(dt.UTC))

    def swap_back() -> None:
        world.promote(1)
        until_all(lambda each: served(each)[0] == 1)
        older = now - dt.timedelta(minutes=30)
        add_rows(world, stats(LATE, older, now + dt.timedelta(days=1)), stats(RENEWED, older, older))

    return [swap_version, reapply_definitions, push_rows, swap_back]


@pytest.mark.timeout(600)
def test_a_replay_explains_every_difference(world: World, replicas: list[ApiServer], tmp_path: Path) -> None:
    steps: list[Callable[[], None]] = [lambda: None, *changes(world, replicas)]
    size = REQUESTS // len(steps)

    async def all_parts() -> Counter[int]:
        statuses: Counter[int] = Counter()
        for part, step in enumerate(steps):
            requests = iter(range(part * size, (part + 1) * size))
            answered, _ = await asyncio.gather(send(replicas, requests), asyncio.to_thread(step))
            statuses += answered
        return statuses

    assert uvloop.run(all_parts()) == {200: REQUESTS}
    for server in replicas:
        server.stop()

    logged = pa.concat_tables(pq.read_table(file, partitioning=None) for file in (tmp_path / "log").rglob("*.parquet"))
    assert sorted(map(int, logged["__request_id"].to_pylist())) == list(range(REQUESTS))
    assert set(logged["model_version"].to_pylist()) == {1, 2}
    assert len(set(logged["__definitions"].to_pylist())) == 2

    causes: Counter[str] = Counter()
    entities: dict[str, set[int]] = {}
    registry = MlflowRegistry.from_settings(world.settings)
    for day in (tmp_path / "log").iterdir():
        report = tmp_path / f"{day.name}.parquet"
        causes.update(replay(Location(day), world.settings, registry, world.store(), Location(report)).causes)
        for row in pq.read_table(report, columns=["entity", "cause"]).to_pylist():
            entities.setdefault(row["cause"], set()).add(int(row["entity"]))
    assert causes["unexplained"] == 0, entities
    assert entities["late_row"] == set(LATE)
    assert entities["past_ttl"] == set(RENEWED)
    assert entities["not_materialized"] == set(PUSHED)
    assert entities["definition_changed"] >= {*OLD, *RENEWED}
