"""100,000 drivers in a real Redis and in SQLite, and registered models. Built once, then reopened.

The world `ranking` has 100,000 users and 100,000 items in a Redis instead. The world `wide-N` has 5,000 drivers with
ten features in each of N views.

The product materializes the stores, byte for byte as Feast does (the materialization benchmark compares the content).
The product and the peers read the same stores: a peer with Feast's own configuration, the product with its own.
"""

import contextlib
import dataclasses
import datetime as dt
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.fingerprint import fingerprint
from benchmarks.paths import VAR
from benchmarks.quietly import quietly
from scoring.settings import LIBRARY_TYPES, SKLEARN_TYPES
from tests.support.servers import HOST, RedisServer
from tests.support.worlds import (
    DRIVER_INPUTS,
    RANKING_INPUTS,
    World,
    build_driver_world,
    build_ranking_world,
    build_wide_world,
)

if TYPE_CHECKING:
    import pandas as pd

DRIVERS = range(1001, 101_001)
WIDE_DRIVERS = 5000  # Feast precomputes the vectors of some hundred drivers per second
MODELS = ("elasticnet", "forest", "boosting", "xgboost", "lightgbm", "onnx", "classes")
CHALLENGER = "lightgbm"
WIDE = {f"wide-{views}": views for views in (1, 5, 25)}
"""Store → its number of feature views."""
STORES = ("redis", "sqlite", "ranking", *WIDE)
OURS, PEERS = "feature_store.yaml", "feature_store_peers.yaml"
# A driver's features are stale after a day; a world is rebuilt before that.
FRESH_FOR = dt.timedelta(hours=18)


@dataclasses.dataclass(frozen=True)
class OnlineWorld:
    """One store with its drivers and registered models."""

    folder: Path
    world: World

    @property
    def drivers(self) -> range:
        """The ids that have features."""
        return DRIVERS[:WIDE_DRIVERS] if self.folder.name in WIDE else DRIVERS

    def ours(self, model: str) -> dict[str, str]:
        """Return the environment of the API for one of MODELS."""
        return self.world.environment | {"SERVING_MODEL_ALIAS": model}

    def peers(self, model: str) -> dict[str, str]:
        """Return the environment of a peer for the same model."""
        return {
            "BENCH_FEATURE_REPO": self.world.environment["SERVING_FEATURE_REPO"],
            "BENCH_FEATURE_STORE_YAML": PEERS,
            "BENCH_INPUTS": ",".join(self._inputs()),
            "BENCH_MODEL": str(self.folder / (f"{model}.onnx" if model == "onnx" else f"{model}.joblib")),
            "BENCH_REGISTERED_MODEL": f"models:/{self.world.settings.model_name}@{model}",
            "MLFLOW_TRACKING_URI": self.world.environment["MLFLOW_TRACKING_URI"],
        }

    def _inputs(self) -> list[str]:
        views = WIDE.get(self.folder.name, 0)
        wide = [f"view{view:02}_{number}" for view in range(views) for number in range(10)]
        return wide or (RANKING_INPUTS if self.folder.name == "ranking" else DRIVER_INPUTS)


@contextlib.contextmanager
def open_world(store: str) -> Iterator[tuple[OnlineWorld, RedisServer | None]]:
    """Open the world with one of STORES and its Redis (None for sqlite). Build it if it is missing or outdated."""
    folder = VAR / "worlds" / store
    world = _kept(folder)
    if world is None:
        print(f"Writing the features of {store} ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    redis = None if store == "sqlite" else RedisServer(folder)
    address = None if redis is None else f"{HOST}:{redis.port}"
    with contextlib.ExitStack() as stack:
        if redis is not None:
            redis.start()  # loads dump.rdb if there is one
            stack.callback(redis.stop)
        if world is None:
            with quietly():
                world = (_build if store in {"redis", "sqlite"} else _build_linear)(folder, address)
        _configure(world, address)
        yield OnlineWorld(folder, world), redis


def _kept(folder: Path) -> World | None:
    try:
        state = json.loads((folder / "world.json").read_text())
    except FileNotFoundError:
        return None
    now = dt.datetime.fromisoformat(state["now"])
    if state.get("made_of") != fingerprint(__file__) or dt.datetime.now(dt.UTC) - now > FRESH_FOR:
        return None
    return World(folder, state["environment"], now)


def _build(folder: Path, redis: str | None) -> World:
    import joblib
    import numpy as np
    import pandas as pd

    random, rows = np.random.default_rng(7), len(DRIVERS)
    now = pd.Timestamp.now("UTC").floor("h")
    stats = pd.DataFrame(
        {
            "event_timestamp": now,
            "driver_id": np.asarray(DRIVERS),
            "conv_rate": random.random(rows, dtype=np.float32),
            "acc_rate": random.random(rows, dtype=np.float32),
            "avg_daily_trips": random.integers(0, 1000, rows),
            "created": now,
        }
    )
    world = build_driver_world(folder, redis=redis, stats=stats)
    for name in MODELS:
        model = register_model(world, name, stats.head(2000))
        if name == "onnx":
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        else:
            joblib.dump(model, folder / f"{name}.joblib")
    registered = world.settings.model_name
    challenger = world.client.get_model_version_by_alias(registered, CHALLENGER).version
    world.client.set_registered_model_alias(registered, "challenger", challenger)
    _keep(world, redis)
    return world


def _build_linear(folder: Path, redis: str | None) -> World:
    import joblib
    import mlflow

    if views := WIDE.get(folder.name):
        world = build_wide_world(folder, redis, DRIVERS[:WIDE_DRIVERS], views)
    else:
        world = build_ranking_world(folder, redis, DRIVERS)
    name = world.settings.model_name
    world.client.set_registered_model_alias(name, "elasticnet", "1")
    joblib.dump(mlflow.sklearn.load_model(f"models:/{name}/1"), folder / "elasticnet.joblib")
    _keep(world, redis)
    return world


def _keep(world: World, redis: str | None) -> None:
    if redis is not None:
        _save(redis)
    state = {"made_of": fingerprint(__file__), "now": world.now.isoformat(), "environment": world.environment}
    (world.folder / "world.json").write_text(json.dumps(state))


def register_model(world: World, name: str, stats: "pd.DataFrame") -> Any:
    """Fit one of MODELS to rows of driver_stats, register it under its name as the alias, and return it."""
    import numpy as np

    inputs = stats[DRIVER_INPUTS].astype("float64")
    noise = np.random.default_rng(7).normal(0, 0.05, len(inputs))
    target = inputs["conv_rate"] + 0.1 * inputs["acc_rate"] + 0.001 * inputs["avg_daily_trips"] + noise
    tags, library, log_model = {"feast.feature_service": "driver_ranking"}, "sklearn", {}
    model = _unfitted(name)
    if name == "classes":
        tags |= {"serving.outputs": "predict_proba", "serving.rank_by": "gold"}
        target = np.array(["bronze", "silver", "gold"])[np.digitize(target, np.quantile(target, [0.3, 0.7]))]
    model.fit(inputs, target)
    if name == "onnx":
        from skl2onnx import to_onnx

        log_model["outputs"] = model.predict(inputs)
        model = to_onnx(model, inputs.head(1).to_numpy("float32"))
    if name in {"xgboost", "lightgbm", "onnx"}:
        library = name
    if library in {"sklearn", "lightgbm"}:
        log_model["skops_trusted_types"] = [*SKLEARN_TYPES, *LIBRARY_TYPES]
    own = dataclasses.replace(world, environment=world.environment | {"SERVING_MODEL_ALIAS": name})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # As documented: without an example, the API neither uses arrays nor merges requests.
        own.register(model, inputs, tags=tags, flavor=library, input_example=inputs.head(20), **log_model)
    return model


def _unfitted(name: str) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import ElasticNet

    if name == "xgboost":
        from xgboost import XGBRegressor

        return XGBRegressor(n_estimators=200, n_jobs=1, random_state=7)
    if name == "lightgbm":
        from lightgbm import LGBMRegressor

        return LGBMRegressor(n_estimators=200, n_jobs=1, random_state=7, verbose=-1)
    return {
        "elasticnet": ElasticNet(alpha=0.001, random_state=7),
        "forest": RandomForestRegressor(100, random_state=7),
        "onnx": RandomForestRegressor(100, random_state=7),
        "boosting": HistGradientBoostingRegressor(random_state=7),
        "classes": RandomForestClassifier(100, random_state=7),
    }[name]


def _save(redis: str) -> None:
    import redis as redis_py

    host, port = redis.split(":")
    with redis_py.Redis(host, int(port)) as client:
        client.save()


def _configure(world: World, redis: str | None) -> None:
    """Write both Feast configurations: the peers' with Feast's own stores, ours with those of this project."""
    repository = Path(world.environment["SERVING_FEATURE_REPO"])
    ours = yaml.safe_load((repository / OURS).read_text())
    if redis is not None:
        ours["online_store"] = {"type": "redis", "connection_string": redis}
    peers = ours | {"offline_store": {"type": "file"}, "batch_engine": {"type": "local"}}
    if redis is not None:
        peers["online_store"] = {"type": "redis", "connection_string": redis}
    # For a running service, Feast's documentation refreshes the registry's copy in a background thread.
    peers["registry"] = ours["registry"] | {"cache_mode": "thread"}
    for name, content in ((OURS, ours), (PEERS, peers)):
        part = repository / f".{name}"
        part.write_text(yaml.safe_dump(content))
        part.replace(repository / name)
