"""The work that every peer does, as the documentation of Feast and scikit-learn has it. Runs in a peer's environment.

Looks the drivers up with Feast's SDK, makes a frame, lets scikit-learn predict on it, and takes the best one.
"""

import os
import warnings
from typing import Any

import joblib
import numpy as np
from feast import FeatureStore

# Importing Feast 0.67 turns deprecation warnings on, and BentoML 1.4 on pydantic 2.14 has one in every request: a sixth
# of its speed.
warnings.simplefilter("ignore")


class Ranker:
    """A feature store and a model, read once. Threads may share it."""

    def __init__(self) -> None:
        folder = os.environ["BENCH_FEATURE_REPO"]
        self._store = FeatureStore(repo_path=folder, fs_yaml_file=f"{folder}/{os.environ['BENCH_FEATURE_STORE_YAML']}")
        self._service = self._store.get_feature_service("driver_ranking")
        self._model = _load(os.environ["BENCH_MODEL"])
        self._inputs = list(self._model.feature_names_in_)

    def best_of_each(self, requests: list[list[int]]) -> list[tuple[int | None, float | None]]:
        """`best` of several requests, with one lookup and one prediction for all of them."""
        known, scores = self.scores(list(dict.fromkeys(each for request in requests for each in request)))
        score = dict(zip(known, scores.tolist(), strict=True))
        best = (
            max((each for each in request if each in score), key=score.__getitem__, default=None)
            for request in requests
        )
        return [(driver, None if driver is None else score[driver]) for driver in best]

    def scores(self, driver_ids: list[int]) -> tuple[list[int], np.ndarray]:
        """The drivers that have features, and the model's output for them."""
        # A dict of columns: Feast takes it as it takes a list of dicts, with less work.
        answer = self._store.get_online_features(self._service, {"driver_id": driver_ids})
        frame = answer.to_df().dropna()  # ElasticNet raises on an unknown driver
        if frame.empty:
            return [], np.empty(0)
        return frame["driver_id"].tolist(), self._model.predict(frame[self._inputs])

    def best(self, driver_ids: list[int]) -> tuple[int | None, float | None]:
        """The driver with the highest score, and the score; None where no driver has features."""
        known, scores = self.scores(driver_ids)
        if not known:
            return None, None
        place = int(scores.argmax())
        return known[place], float(scores[place])


def _load(place: str) -> Any:
    """The fitted estimator in a file, or behind an alias of the MLflow registry (`models:/name@alias`)."""
    if place.startswith("models:/"):
        import mlflow.sklearn

        return mlflow.sklearn.load_model(place)
    return joblib.load(place)
