"""Complete small worlds for tests: a Feast repository with data, applied and materialized, and an MLflow registry.

Each is in one folder, in files and SQLite. Feast, MLflow and scikit-learn are imported only when a world is built.
"""

import dataclasses
import datetime as dt
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoring.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
REPOSITORIES = ROOT / "tests" / "feature_repos"
DRIVER_INPUTS = ["acc_rate", "conv_rate", "avg_daily_trips"]
RANKING_INPUTS = ["budget", "visits", "price", "sold"]
CUSTOMER_INPUTS = ["mean_basket", "age", "has_card"]


@dataclasses.dataclass
class World:
    """One world: its location, the settings to serve it, and methods to register versions in it."""

    folder: Path
    environment: dict[str, str]
    """The environment variables of a process that serves this world."""
    now: dt.datetime
    """The timestamp of the newest features."""

    @property
    def settings(self) -> Settings:
        """Return the settings of `environment`."""
        return Settings.from_environment(self.environment)

    def settings_with(self, **environment: str) -> Settings:
        """Return the settings of `environment` with some variables changed."""
        return Settings.from_environment(self.environment | environment)

    @property
    def client(self) -> "MlflowClient":
        """Return a client of its model registry."""
        from mlflow import MlflowClient

        return MlflowClient(self.environment["MLFLOW_TRACKING_URI"])

    def store(self) -> "FeatureStore":
        """Return its feature store."""
        from scoring.features.feature_store import open_feature_store

        return open_feature_store(self.settings)

    def register(
        self,
        estimator: Any,
        inputs: "pd.DataFrame",
        *,
        tags: Mapping[str, str],
        promote: bool = True,
        flavor: str = "sklearn",
        outputs: Any = None,
        **log_model: Any,
    ) -> int:
        """Log a fitted model with the signature of `inputs`, register it, tag it, and set the alias on it.

        Args:
            estimator: the model, of the library that MLflow calls `flavor`.
            inputs: rows that it can predict.
            tags: tags of the version.
            promote: whether to set the alias on it.
            flavor: name of one of MLflow's modules.
            outputs: what the model returns for these rows; by default, what its predict function returns.
            log_model: further arguments of MLflow's `log_model`.
        """
        import mlflow
        from mlflow.models import infer_signature

        mlflow.set_tracking_uri(self.environment["MLFLOW_TRACKING_URI"])
        experiment = self.client.get_experiment_by_name("tests")
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment("tests", artifact_location=self._artifact_location())
        )
        # MLflow warns about integer inputs, which can't be missing; they are part of the tests.
        if outputs is None:
            outputs = getattr(estimator, log_model.get("pyfunc_predict_fn", "predict"))(inputs)
        with warnings.catch_warnings(), mlflow.start_run(experiment_id=experiment_id):
            warnings.simplefilter("ignore")
            logged = getattr(mlflow, flavor).log_model(
                estimator,
                name="model",
                signature=infer_signature(inputs, outputs),
                pip_requirements=["scikit-learn"],
                registered_model_name=self.settings.model_name,
                **log_model,
            )
        version = int(logged.registered_model_version)
        for key, value in tags.items():
            self.client.set_model_version_tag(self.settings.model_name, str(version), key, value)
        if promote:
            self.promote(version)
        return version

    def register_files(self, files: Path, *, tags: Mapping[str, str]) -> int:
        """Register a model folder without validation."""
        import mlflow

        name = self.settings.model_name
        mlflow.set_tracking_uri(self.environment["MLFLOW_TRACKING_URI"])
        experiment = self.client.get_experiment_by_name("tests")
        assert experiment is not None
        with mlflow.start_run(experiment_id=experiment.experiment_id) as run:
            mlflow.log_artifacts(str(files), "model")
        version = self.client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id).version
        for key, value in tags.items():
            self.client.set_model_version_tag(name, str(version), key, value)
        return int(version)

    def _artifact_location(self) -> str | None:
        if self.environment["MLFLOW_TRACKING_URI"].startswith("http"):
            return None  # the server stores artifacts itself
        return (self.folder / "mlartifacts").as_uri()

    def promote(self, version: int) -> None:
        """Set the alias on a version."""
        settings = self.settings
        self.client.set_registered_model_alias(settings.model_name, settings.model_alias, str(version))


def build_driver_world(
    folder: Path,
    redis: str | None = None,
    registry: str | None = None,
    stats: "pd.DataFrame | None" = None,
    model: str = "driver_ranker",
) -> World:
    """The repository's own feature_repo with drivers 1001 to 1020, and an ElasticNet as version 1.

    Args:
        folder: an empty folder.
        redis: connection string of the Redis online store, such as `127.0.0.1:6379`; by default, the store is SQLite.
        registry: address of an MLflow server; a database in the folder by default.
        stats: rows of the view driver_stats; by default those of the demo.
        model: name of the registered model; a test that shares the registry uses its own.
    """
    from feast.driver_test_data import create_driver_hourly_stats_df

    world = _new_world(folder, ROOT / "feature_repo", model)
    if redis is not None:
        _use_redis(world, redis)
    if registry is not None:
        world.environment["MLFLOW_TRACKING_URI"] = registry
    if stats is None:
        stats = create_driver_hourly_stats_df(list(range(1001, 1021)), world.now - dt.timedelta(days=2), world.now)
    stats = stats[["event_timestamp", "driver_id", "conv_rate", "acc_rate", "avg_daily_trips", "created"]]
    _write(world, "driver_stats", stats)
    _apply_and_materialize(world)
    register_driver_model(world)
    return world


def register_driver_model(
    world: World,
    alpha: float = 0.001,
    inputs: list[str] | None = None,
    promote: bool = True,
    with_example: bool = True,
    tagged: bool = True,
) -> int:
    """Register another version of the drivers' ElasticNet; another `alpha` gives other scores."""
    import pandas as pd
    from sklearn.linear_model import ElasticNet

    stats = pd.read_parquet(world.folder / "feature_repo" / "data" / "driver_stats.parquet")
    frame = stats[DRIVER_INPUTS].astype("float64").dropna()
    target = frame["conv_rate"] + 0.1 * frame["acc_rate"] + 0.001 * frame["avg_daily_trips"]
    if inputs is not None:
        frame = frame.rename(columns=dict(zip(DRIVER_INPUTS, inputs, strict=True)))
    model = ElasticNet(alpha=alpha).fit(frame, target)
    tags = {"feast.feature_service": "driver_ranking"} if tagged else {}
    example = {"input_example": frame.head(20)} if with_example else {}
    return world.register(model, frame, tags=tags, promote=promote, **example)


def build_customer_world(folder: Path) -> World:
    """Customers c-0 to c-29 in two views, and a classifier pipeline that returns probabilities."""
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    world = _new_world(folder, REPOSITORIES / "customers", "churn_risk")
    random = np.random.default_rng(7)
    rows = 30
    customers = [f"c-{number}" for number in range(rows)]
    profile = pd.DataFrame(
        {
            "customer_id": customers,
            "event_timestamp": world.now - dt.timedelta(days=1),
            "age": random.integers(18, 90, rows).astype("int32"),
            "has_card": random.integers(0, 2, rows).astype(bool),
        }
    )
    spending = pd.DataFrame(
        {"customer_id": customers, "event_timestamp": world.now, "mean_basket": random.uniform(5, 200, rows)}
    )
    _write(world, "profile", profile)
    _write(world, "spending", spending)
    _apply_and_materialize(world)
    frame = profile.merge(spending, on="customer_id")[CUSTOMER_INPUTS]
    pipeline = Pipeline(
        [
            (
                "columns",
                ColumnTransformer(
                    [("scaled", StandardScaler(), ["age", "mean_basket"]), ("kept", "passthrough", ["has_card"])]
                ),
            ),
            ("classifier", LogisticRegression()),
        ]
    ).fit(frame, (frame["mean_basket"] < 80).astype(int))
    tags = {"feast.feature_service": "churn", "serving.output_column": "1"}
    world.register(pipeline, frame, tags=tags, pyfunc_predict_fn="predict_proba")
    return world


def build_payment_world(folder: Path) -> World:
    """Pairs of customers c-0 to c-4 and merchants 1 to 4, and a linear model."""
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    world = _new_world(folder, REPOSITORIES / "payments", "fraud_score")
    pairs = [(f"c-{customer}", merchant) for customer in range(5) for merchant in range(1, 5)]
    payments = pd.DataFrame(pairs, columns=["customer_id", "merchant_id"])
    payments["event_timestamp"] = world.now
    payments["mean_amount"] = pd.Series(range(len(pairs)), dtype="float32") / 3
    payments["count_30d"] = [number * 7 % 11 for number in range(len(pairs))]
    _write(world, "payments", payments)
    _apply_and_materialize(world)
    frame = pd.DataFrame({"mean_amount": payments["mean_amount"], "count_30d": payments["count_30d"].astype("float64")})
    model = LinearRegression().fit(frame, frame["mean_amount"] - 0.5 * frame["count_30d"])
    world.register(model, frame, tags={"feast.feature_service": "fraud"})
    return world


def build_ranking_world(folder: Path, redis: str | None = None, ids: range = range(1001, 1021)) -> World:
    """Users and items with the same ids, each with features in a view of its own, and an ElasticNet.

    Args:
        folder: an empty folder.
        redis: connection string of the Redis online store; by default, the store is SQLite.
        ids: the users' and the items' ids.
    """
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import ElasticNet

    world = _new_world(folder, REPOSITORIES / "rankings", "item_ranker")
    if redis is not None:
        _use_redis(world, redis)
    random, rows, frames = np.random.default_rng(7), len(ids), {}
    for view, key, number, count in (("users", "user_id", "budget", "visits"), ("items", "item_id", "price", "sold")):
        frames[view] = pd.DataFrame({key: np.asarray(ids), "event_timestamp": world.now})
        frames[view][number] = random.uniform(1, 100, rows).astype("float32")
        frames[view][count] = random.integers(0, 1000, rows)
        _write(world, view, frames[view])
    _apply_and_materialize(world)
    frame = frames["users"].join(frames["items"][["price", "sold"]])[RANKING_INPUTS].head(2000).astype("float64")
    target = frame["sold"] / 100 - (frame["price"] - frame["budget"]).abs() + 0.001 * frame["visits"]
    model = ElasticNet(alpha=0.001).fit(frame, target)
    tags = {"feast.feature_service": "ranking", "serving.overridable": "budget, price"}
    world.register(model, frame, tags=tags, input_example=frame.head(20))
    return world


def build_wide_world(folder: Path, redis: str | None, ids: range, views: int) -> World:
    """Drivers with ten features in each of several views, and an ElasticNet of all features.

    The service `precomputed` has the same features as Feast's own feature vectors.

    Args:
        folder: an empty folder.
        redis: connection string of the Redis online store; Feast precomputes no vectors in SQLite.
        ids: the drivers' ids.
        views: the number of views.
    """
    import numpy as np
    import pandas as pd
    from feast import FeatureService
    from sklearn.linear_model import ElasticNet

    world = _new_world(folder, REPOSITORIES / "wide", "driver_ranker")
    if redis is not None:
        _use_redis(world, redis)
    random, rows, frames = np.random.default_rng(7), len(ids), []
    for view in (f"view{number:02}" for number in range(views)):
        values = {
            f"{view}_{number}": random.integers(0, 1000, rows) if number % 2 else random.random(rows, dtype=np.float32)
            for number in range(10)
        }
        frames.append(pd.DataFrame(values))
        _write(world, view, frames[-1].assign(driver_id=np.asarray(ids), event_timestamp=world.now))
    _apply_and_materialize(world)
    store = world.store()
    store.apply([FeatureService(name="precomputed", features=[*store.list_feature_views()], precompute_online=True)])
    store.precompute_feature_service("precomputed")
    frame = pd.concat(frames, axis="columns").head(2000).astype("float64")
    target = (frame / frame.max()).sum(axis="columns") + random.normal(0, 0.05, len(frame))
    model = ElasticNet(alpha=0.001).fit(frame, target)
    world.register(model, frame, tags={"feast.feature_service": "driver_ranking"}, input_example=frame.head(20))
    return world


def _new_world(folder: Path, repository: Path, model: str) -> World:
    # It imports pytest, which the benchmarks' contenders lack.
    from tests.support.servers import new_mlflow_database

    shutil.copytree(repository, folder / "feature_repo", ignore=shutil.ignore_patterns("data", "__pycache__"))
    (folder / "feature_repo" / "data").mkdir()
    environment = {
        "SERVING_MODEL_NAME": model,
        "SERVING_FEATURE_REPO": str(folder / "feature_repo"),
        "SERVING_BATCH_REQUESTS": str(folder / "batch_requests"),
        "SERVING_ARTIFACTS": str(folder / "artifacts"),
        "MLFLOW_TRACKING_URI": new_mlflow_database(folder / "mlflow.db"),
    }
    return World(folder, environment, dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0))


def _use_redis(world: World, connection_string: str) -> None:
    import yaml

    file = world.folder / "feature_repo" / "feature_store.yaml"
    configuration = yaml.safe_load(file.read_text())
    configuration["online_store"] = {
        "type": "redis",
        "connection_string": connection_string,
    }
    file.write_text(yaml.safe_dump(configuration))


def _write(world: World, name: str, frame: "pd.DataFrame") -> None:
    file = world.folder / "feature_repo" / "data" / f"{name}.parquet"
    frame.to_parquet(file, coerce_timestamps="us", index=False)


def _apply_and_materialize(world: World) -> None:
    from scoring.features.feature_store import apply_definitions
    from scoring.features.materialize import materialize_online_store

    store = world.store()
    apply_definitions(store)
    materialize_online_store(store, dt.datetime.now(dt.UTC))
