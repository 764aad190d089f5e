"""Train the example's model on point-in-time features, register it, and move the alias to it.

This is an ordinary training script for Feast and MLflow. Only two lines matter to this project: the tag
`feast.feature_service`, which is Feast's convention, and `log_baseline`, by which drift is measured.
"""

import os
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cli.processes import CannotStart
from demo.data import make_orders
from demo.environment import ALIAS, FEATURE_SERVICE, MODEL, MODEL_ARTIFACTS
from scoring.foreign_errors import first_line, without_secrets
from scoring.imports import import_mlflow, inside
from scoring.monitoring.baseline import log_baseline

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from sklearn.linear_model import ElasticNet

INPUTS = ["conv_rate", "acc_rate", "avg_daily_trips"]
EXPERIMENT = "driver_ranking"
# Registering a model on a busy server takes longer than reading an alias.
REQUEST_TIMEOUT_S = "20"
# mlflow 3.17 reports a missing alias as INVALID_PARAMETER_VALUE.
NOT_FOUND = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


class Trained(msgspec.Struct, frozen=True):
    """A newly registered model version."""

    version: int
    orders: int
    r2: float
    """Coefficient of determination on held-out orders."""


def champion_version(tracking_uri: str) -> int | None:
    """Return the version that the alias names, or None before the first training.

    Raises:
        CannotStart: MLflow failed.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_TIMEOUT_S)
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return int(MlflowClient(tracking_uri=tracking_uri).get_model_version_by_alias(MODEL, ALIAS).version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND:
            return None
        raise _cannot_use(tracking_uri, error) from error
    except Exception as error:  # SQLAlchemy's, if the creation of the database was interrupted
        raise CannotStart(f"MLflow can't use {tracking_uri} ({first_line(error)}): make clean deletes it.") from error


def train_and_promote(
    store: "FeatureStore", tracking_uri: str, driver_stats: Path, until: datetime, seed: int
) -> Trained:
    """Train on new orders, register a version tagged with its feature service, and move the alias to it.

    Raises:
        CannotStart: MLflow failed.
    """
    from mlflow.exceptions import MlflowException
    from sklearn.linear_model import ElasticNet
    from sklearn.model_selection import train_test_split

    orders = make_orders(driver_stats, until, count=2000, seed=seed)
    with inside(Path(store.repo_path)):
        rows = store.get_historical_features(orders, store.get_feature_service(FEATURE_SERVICE)).to_df()
    rows = rows.dropna(subset=INPUTS)
    # Doubles, because an integer input of the signature can't be missing.
    features, ratings = rows[INPUTS].astype("float64"), rows["rating"]
    train_x, test_x, train_y, test_y = train_test_split(features, ratings, random_state=seed)
    model = ElasticNet(alpha=0.001, random_state=seed).fit(train_x, train_y)

    r2 = float(model.score(test_x, test_y))
    try:
        version = _register(model, r2, train_x, tracking_uri)
    except MlflowException as error:
        raise _cannot_use(tracking_uri, error) from error
    return Trained(version, len(rows), r2)


def _register(model: "ElasticNet", r2: float, features: "pd.DataFrame", tracking_uri: str) -> int:
    import mlflow
    from mlflow.models import infer_signature

    predictions = model.predict(features)
    mlflow.set_tracking_uri(tracking_uri)
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        # A server has its own artifact location; a database file does not.
        location = None if tracking_uri.startswith("http") else MODEL_ARTIFACTS.as_uri()
        mlflow.create_experiment(EXPERIMENT, artifact_location=location)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.log_metric("r2", r2)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(features, predictions),
            input_example=features.head(5),
            pip_requirements=["scikit-learn", "skops"],  # otherwise, MLflow loads the model again to infer them (5 s)
            registered_model_name=MODEL,
        )
    log_baseline(logged.model_id, features, predictions)
    version = str(logged.registered_model_version)
    client = mlflow.MlflowClient()
    client.set_model_version_tag(MODEL, version, "feast.feature_service", FEATURE_SERVICE)
    client.set_registered_model_alias(MODEL, ALIAS, version)
    return int(version)


def _cannot_use(tracking_uri: str, error: Exception) -> CannotStart:
    address = without_secrets(tracking_uri)
    return CannotStart(f"MLflow at {address} can't be used ({first_line(error)}): check MLFLOW_TRACKING_URI.")
