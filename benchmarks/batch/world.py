"""Feature views and requests with many rows, some models, and Feast's own offline stores beside ours. Built once."""

import dataclasses
import datetime as dt
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.fingerprint import fingerprint
from benchmarks.paths import VAR
from benchmarks.quietly import quietly
from tests.support.worlds import World, build_driver_world

if TYPE_CHECKING:
    import pandas as pd

FOLDER = VAR / "worlds" / "batch"
DRIVERS, HOURS = 10_000, 30
"""Feature rows: one per driver and hour."""
FEATURES = ("conv_rate", "acc_rate", "avg_daily_trips")
SERVICE = "driver_ranking"
OFFLINE_STORES = {"file": {"type": "file"}, "duckdb": {"type": "duckdb"}}
MODELS = ("xgboost", "lightgbm")
"""Aliases of models besides the ElasticNet."""
MODELS_FILE = Path(__file__).parents[1] / "online" / "world.py"
FEW = 1000
"""Number of rows for a contender's warm-up."""
ROWS_PER_PIECE = 1_000_000


def open_batch_world(model: str = "") -> World:
    """Open the world with the ElasticNet, or with one of MODELS. Build it if it is missing or outdated."""
    world = _open()
    own = {"SERVING_MODEL_ALIAS": model} if model else {}
    return dataclasses.replace(world, environment=world.environment | own)


def _open() -> World:
    made_of = fingerprint(__file__, str(MODELS_FILE))
    try:
        state = json.loads((FOLDER / "world.json").read_text())
        if state.get("made_of") == made_of:
            return World(FOLDER, state["environment"], dt.datetime.fromisoformat(state["now"]))
    except FileNotFoundError:
        pass
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    from benchmarks.online.world import register_model  # needs packages that contenders lack

    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    with quietly():
        stats = feature_rows(now, DRIVERS, HOURS)
        world = build_driver_world(FOLDER, stats=stats)
        for name in MODELS:
            register_model(world, name, stats.head(2000))
    _add_offline_stores(world)
    state = {"made_of": made_of, "now": now.isoformat(), "environment": world.environment}
    (FOLDER / "world.json").write_text(json.dumps(state))
    return world


def feature_rows(until: dt.datetime, drivers: int, hours: int) -> "pd.DataFrame":
    """Return rows of the view driver_stats: drivers from 1001 on, one row per hour up to `until`."""
    import pandas as pd

    random, rows = np.random.default_rng(7), drivers * hours
    timestamps = pd.Timestamp(until) - pd.to_timedelta(np.tile(np.arange(hours), drivers), unit="h")
    return pd.DataFrame(
        {
            "event_timestamp": timestamps.as_unit("us"),
            "driver_id": np.repeat(np.arange(1001, 1001 + drivers), hours),
            "conv_rate": random.random(rows, dtype=np.float32),
            "acc_rate": random.random(rows, dtype=np.float32),
            "avg_daily_trips": random.integers(0, 1000, rows),
            "created": timestamps.as_unit("us"),
        }
    )


def joined_rows(world: World, rows: int) -> Path:
    """Return the path of the joined request with this number of rows; see `benchmarks.batch.files`."""
    return world.folder / "joined" / world.settings.model_alias / f"rows_{rows}" / "batch_input.parquet"


def request_of(world: World, rows: int) -> Path:
    """Return a request file with this number of rows over a day.

    All drivers are known, because the baseline raises on a missing feature.
    """
    file = world.folder / "requests" / f"rows_{rows}.parquet"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        with pq.ParquetWriter(part, next(_request_rows(world.now, 1)).schema) as writer:
            for piece in _request_rows(world.now, rows):
                writer.write_table(piece)
        part.rename(file)
    return file


def _request_rows(now: dt.datetime, rows: int) -> Iterator[pa.Table]:
    random = np.random.default_rng(11)
    newest = np.datetime64(now.replace(tzinfo=None), "us")
    for start in range(0, rows, ROWS_PER_PIECE):
        count = min(ROWS_PER_PIECE, rows - start)
        timestamps = pa.array(newest - random.integers(0, 86_400, count).astype("timedelta64[s]"))
        yield pa.table(
            {
                "driver_id": random.integers(1001, 1001 + DRIVERS, count),
                "event_timestamp": timestamps.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
                "ride": np.arange(start, start + count),
            }
        )


def store_configuration(offline_store: str) -> str:
    """Return the name of the Feast configuration with one of OFFLINE_STORES."""
    return f"feature_store_{offline_store}.yaml"


def _add_offline_stores(world: World) -> None:
    repository = Path(world.environment["SERVING_FEATURE_REPO"])
    ours: dict[str, Any] = yaml.safe_load((repository / "feature_store.yaml").read_text())
    for name, offline_store in OFFLINE_STORES.items():
        content = ours | {"offline_store": offline_store}
        (repository / store_configuration(name)).write_text(yaml.safe_dump(content))
