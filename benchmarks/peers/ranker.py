"""The work of every peer, as the documentation of Feast and scikit-learn describes it. Runs in a peer's environment.

Looks up the drivers with Feast's SDK, builds a frame, predicts with scikit-learn, and picks the best driver.
"""

import os
import warnings
from typing import Any

import joblib
import numpy as np
from feast import FeatureStore

# Importing Feast 0.67 enables deprecation warnings, and BentoML 1.4 on pydantic 2.14 emits one per request, which costs
# a sixth of its speed.
warnings.simplefilter("ignore")


class Ranker:
    """A feature store and a model, loaded once. Threads may share an instance."""

    def __init__(self) -> None:
        folder = os.environ["BENCH_FEATURE_REPO"]
        self._store = FeatureStore(repo_path=folder, fs_yaml_file=f"{folder}/{os.environ['BENCH_FEATURE_STORE_YAML']}")
        self._service = self._store.get_feature_service("driver_ranking")
        self._model = _load(os.environ["BENCH_MODEL"])
        self._inputs = list(self._model.feature_names_in_)

    def best_of_each(self, requests: list[list[int]]) -> list[tuple[int | None, float | None]]:
        """Return `best` for several requests, with one lookup and one prediction for all of them."""
        known, scores = self.scores(list(dict.fromkeys(each for request in requests for each in request)))
        score = dict(zip(known, scores.tolist(), strict=True))
        best = (
            max((each for each in request if each in score), key=score.__getitem__, default=None)
            for request in requests
        )
        return [(driver, None if driver is None else score[driver]) for driver in best]

    def scores(self, driver_ids: list[int]) -> tuple[list[int], np.ndarray]:
        """Return the drivers that have features, and the model's output for them."""
        # Feast accepts a dict of columns or a list of dicts; the dict is less work.
        answer = self._store.get_online_features(self._service, {"driver_id": driver_ids})
        frame = answer.to_df().dropna()  # ElasticNet raises on an unknown driver
        if frame.empty:
            return [], np.empty(0)
        return frame["driver_id"].tolist(), self._model.predict(frame[self._inputs])

    def best(self, driver_ids: list[int]) -> tuple[int | None, float | None]:
        """Return the driver with the highest score and the score, or None for both if no driver has features."""
        known, scores = self.scores(driver_ids)
        if not known:
            return None, None
        position = int(scores.argmax())
        return known[position], float(scores[position])


def _load(source: str) -> Any:
    """Load the fitted estimator from a file, or from an alias of the MLflow registry (`models:/name@alias`)."""
    if source.startswith("models:/"):
        import mlflow.sklearn

        return mlflow.sklearn.load_model(source)
    return joblib.load(source)
