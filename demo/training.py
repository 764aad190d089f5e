"""Train the example's model on features as of each order's moment, register it, and move the alias to it.

This is what a data scientist's own script does with Feast and MLflow: nothing here is special to this project but the
tag `feast.feature_service`, which is Feast's convention.
"""

import os
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from demo.data import make_orders
from demo.place import ALIAS, FEATURE_SERVICE, MODEL, MODEL_ARTIFACTS, CannotStart
from scoring.errors import first_line, without_secrets
from scoring.imports import import_mlflow, inside

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore
    from sklearn.linear_model import ElasticNet

INPUTS = ["conv_rate", "acc_rate", "avg_daily_trips"]
EXPERIMENT = "driver_ranking"
# A server that registers a model beside much else takes longer than one that only tells of an alias.
PATIENCE_S = "20"
NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})  # the second: no such alias (mlflow 3.17)


class Trained(msgspec.Struct, frozen=True):
    """A newly registered version."""

    version: int
    orders: int
    r2: float
    """Share of the ratings' variance that the model explains, on orders that it was not trained on."""


def champion_version(tracking_uri: str) -> int | None:
    """The version that the alias names, None before the first training.

    Raises:
        CannotStart: MLflow can't say.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", PATIENCE_S)
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return int(MlflowClient(tracking_uri=tracking_uri).get_model_version_by_alias(MODEL, ALIAS).version)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise _cannot_use(tracking_uri, error) from error
    except Exception as error:  # SQLAlchemy's, of a database whose creation was interrupted
        raise CannotStart(f"MLflow can't use {tracking_uri} ({first_line(error)}): make clean forgets it.") from error


def train_and_promote(
    store: "FeatureStore", tracking_uri: str, driver_stats: Path, until: datetime, seed: int
) -> Trained:
    """Train on fresh orders, register a new version with its feature service's name, move the alias to it.

    Raises:
        CannotStart: MLflow would not.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import infer_signature
    from sklearn.linear_model import ElasticNet
    from sklearn.model_selection import train_test_split

    orders = make_orders(driver_stats, until, count=2000, seed=seed)
    with inside(Path(store.repo_path)):
        rows = store.get_historical_features(orders, store.get_feature_service(FEATURE_SERVICE)).to_df()
    rows = rows.dropna(subset=INPUTS)
    # Doubles: an input that is an integer in the signature could not be missing.
    features, ratings = rows[INPUTS].astype("float64"), rows["rating"]
    train_x, test_x, train_y, test_y = train_test_split(features, ratings, random_state=seed)
    model = ElasticNet(alpha=0.001, random_state=seed).fit(train_x, train_y)

    r2 = float(model.score(test_x, test_y))
    try:
        version = _register(model, r2, train_x.head(5), infer_signature(train_x, model.predict(train_x)), tracking_uri)
    except MlflowException as error:
        raise _cannot_use(tracking_uri, error) from error
    return Trained(version, len(rows), r2)


def _register(model: "ElasticNet", r2: float, example: "pd.DataFrame", signature: Any, tracking_uri: str) -> int:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        # A server knows a place for artifacts; a database file does not.
        place = None if tracking_uri.startswith("http") else MODEL_ARTIFACTS.as_uri()
        mlflow.create_experiment(EXPERIMENT, artifact_location=place)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.log_metric("r2", r2)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=signature,
            input_example=example,
            pip_requirements=["scikit-learn", "skops"],  # else MLflow loads the model once more to find them out: 5 s
            registered_model_name=MODEL,
        )
    version = str(logged.registered_model_version)
    client = mlflow.MlflowClient()
    client.set_model_version_tag(MODEL, version, "feast.feature_service", FEATURE_SERVICE)
    client.set_registered_model_alias(MODEL, ALIAS, version)
    return int(version)


def _cannot_use(tracking_uri: str, error: Exception) -> CannotStart:
    place = without_secrets(tracking_uri)
    return CannotStart(f"MLflow at {place} can't be used ({first_line(error)}): check MLFLOW_TRACKING_URI.")
