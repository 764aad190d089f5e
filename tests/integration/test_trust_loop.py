"""100,000 requests while versions, features and definitions change: a replay explains every difference.

Meanwhile the object store of the prediction log hangs, and at the end one replica is killed.
"""

import asyncio
import contextlib
import datetime as dt
import io
import json
import os
import signal
import time
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
from scoring.monitoring.log_files import day_folder, log_files
from scoring.monitoring.replay import replay
from tests.support.api_server import ApiServer, Connection
from tests.support.s3 import make_bucket
from tests.support.servers import MlflowServer, RedisServer, S3Server, wait_until
from tests.support.worlds import World, build_driver_world, register_driver_model

REQUESTS = 100_000
CONNECTIONS = 8
"""Per replica."""
LOG_SECONDS = 5
HANGS_S = 8
LOG = Location("s3://trust/log")
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
def replicas(
    tmp_path: Path, world: World, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[ApiServer]]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    make_bucket(s3_server, "trust")
    environment = world.environment | {
        "SERVING_PREDICTION_LOG": str(LOG),
        "SERVING_PREDICTION_LOG_SECONDS": str(LOG_SECONDS),
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


async def send(replicas: list[ApiServer], numbers: Iterator[int]) -> dict[int, tuple[int, int, float]]:
    """Send the requests with these numbers, one driver each. Return number → status, port, time of the response."""
    answers: dict[int, tuple[int, int, float]] = {}

    async def client(port: int) -> None:
        async with Connection(port) as connection:
            for number in numbers:
                body = {"request_id": str(number), "driver_ids": [DRIVERS[number % len(DRIVERS)]]}
                answer = await connection.ask("POST", "/scores", json.dumps(body).encode())
                answers[number] = answer.status, port, time.monotonic()

    await asyncio.gather(*(client(server.port) for server in replicas for _ in range(CONNECTIONS)))
    return answers


def served(replica: ApiServer) -> tuple[int, str]:
    facts = replica.get("/version").json()
    return facts["model"]["version"], facts["definitions"]


def changes(world: World, replicas: list[ApiServer], s3: S3Server) -> list[Callable[[], None]]:
    """Return what happens during each part of the requests."""
    now = dt.datetime.now(dt.UTC)
    definitions = served(replicas[0])[1]

    def until_all(condition: Callable[[ApiServer], bool]) -> None:
        wait_until(lambda: all(map(condition, replicas)), lambda: str([served(each) for each in replicas]), 60)

    def hang_the_object_store() -> None:
        assert s3.process is not None
        os.kill(s3.process.pid, signal.SIGSTOP)
        try:
            time.sleep(HANGS_S)
        finally:
            os.kill(s3.process.pid, signal.SIGCONT)

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

    return [hang_the_object_store, swap_version, reapply_definitions, push_rows, swap_back]


@pytest.mark.timeout(600)
def test_a_replay_explains_every_difference(
    world: World, replicas: list[ApiServer], s3_server: S3Server, tmp_path: Path
) -> None:
    steps = changes(world, replicas, s3_server)
    size = REQUESTS // len(steps)

    async def all_parts() -> dict[int, tuple[int, int, float]]:
        answers: dict[int, tuple[int, int, float]] = {}
        for part, step in enumerate(steps):
            requests = iter(range(part * size, (part + 1) * size))
            answered, _ = await asyncio.gather(send(replicas, requests), asyncio.to_thread(step))
            answers |= answered
        return answers

    answers = uvloop.run(all_parts())
    stopped, killed = replicas
    killed_at = time.monotonic()
    killed.kill()
    stopped.stop()

    assert Counter(status for status, _, _ in answers.values()) == {200: REQUESTS}
    days = logged_days()
    files = [folder / entry.name for folder in days for entry in folder.files()]
    logged = pa.concat_tables(pq.read_table(io.BytesIO(file.read_bytes())) for file in files)
    ids = list(map(int, logged["__request_id"].to_pylist()))
    assert len(ids) == len(set(ids))
    lost = [answers[number] for number in answers.keys() - set(ids)]
    assert {port for _, port, _ in lost} <= {killed.port}
    assert all(at > killed_at - LOG_SECONDS - 2 for _, _, at in lost)  # a file takes its time, too
    assert set(logged["model_version"].to_pylist()) == {1, 2}
    assert len(set(logged["__definitions"].to_pylist())) == 2

    causes: Counter[str] = Counter()
    entities: dict[str, set[int]] = {}
    registry = MlflowRegistry.from_settings(world.settings)
    for folder in days:
        report = tmp_path / f"{folder.name}.parquet"
        causes.update(replay(folder, world.settings, registry, world.store(), Location(report)).causes)
        for row in pq.read_table(report, columns=["entity", "cause"]).to_pylist():
            entities.setdefault(row["cause"], set()).add(int(row["entity"]))
    assert causes["unexplained"] == 0, entities
    assert entities["late_row"] == set(LATE)
    assert entities["past_ttl"] == set(RENEWED)
    assert entities["not_materialized"] == set(PUSHED)
    assert entities["definition_changed"] >= {*OLD, *RENEWED}


def logged_days() -> list[Location]:
    """Return the log's folders: one, or two around midnight (UTC)."""
    today = dt.datetime.now(dt.UTC).date()
    folders = [day_folder(LOG, str(day)) for day in (today - dt.timedelta(days=1), today)]
    return [folder for folder in folders if log_files(folder)]
