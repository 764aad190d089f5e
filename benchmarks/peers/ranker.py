"""The work of every peer, as the documentation of Feast and scikit-learn describes it. Runs in a peer's environment.

Looks up the drivers with Feast's SDK, builds a frame, predicts with the model's library, and picks the best driver.
"""

import os
import warnings
from collections.abc import Callable

import joblib
import numpy as np
import pandas as pd
from feast import FeatureStore

# Importing Feast 0.67 enables deprecation warnings, and BentoML 1.4 on pydantic 2.14 emits one per request, which costs
# a sixth of its speed.
warnings.simplefilter("ignore")


class Ranker:
    """A feature store and a model, loaded once. Threads may share an instance."""

    service, key = "driver_ranking", "driver_id"

    def __init__(self) -> None:
        folder = os.environ["BENCH_FEATURE_REPO"]
        self._store = FeatureStore(repo_path=folder, fs_yaml_file=f"{folder}/{os.environ['BENCH_FEATURE_STORE_YAML']}")
        self._inputs = os.environ["BENCH_INPUTS"].split(",")
        self._service = self._store.get_feature_service(self.service)
        self._predict = _load(os.environ["BENCH_MODEL"])

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
        return self.scores_of({"driver_id": driver_ids})

    def scores_of(self, entities: dict[str, list[int]]) -> tuple[list[int], np.ndarray]:
        """Return the values of `key` of the entities that have features, and the model's output for them."""
        # Feast accepts a dict of columns or a list of dicts; the dict is less work.
        frame = self._store.get_online_features(self._service, entities).to_df()
        frame = frame.dropna()  # ElasticNet raises on an unknown entity
        if frame.empty:
            return [], np.empty(0)
        return frame[self.key].tolist(), self._predict(frame[self._inputs])

    def best(self, driver_ids: list[int]) -> tuple[int | None, float | None]:
        """Return the driver with the highest score and the score, or None for both if no driver has features."""
        return self.best_known(*self.scores(driver_ids))

    def best_known(self, known: list[int], scores: np.ndarray) -> tuple[int | None, float | None]:
        """Return the one with the highest score and the score, or None for both if there is none."""
        if not known:
            return None, None
        position = int(scores.argmax())
        return known[position], float(scores[position])


class ItemRanker(Ranker):
    """Ranks items for a user, with features of both."""

    service, key = "ranking", "item_id"

    def best_for(self, user_id: int, item_ids: list[int]) -> tuple[int | None, float | None]:
        """Return the best item for the user and its score, or None for both if there is none."""
        return self.best_known(*self.scores_of({"user_id": [user_id] * len(item_ids), "item_id": item_ids}))


def _load(source: str) -> Callable[[pd.DataFrame], np.ndarray]:
    """Load a model from a file, or from an alias of the MLflow registry. Return the function that scores a frame."""
    if source.startswith("models:/"):
        import mlflow.sklearn

        return mlflow.sklearn.load_model(source).predict
    if source.endswith(".onnx"):
        return _of_onnx(source)
    model = joblib.load(source)
    if not hasattr(model, "classes_"):
        return model.predict
    gold = list(model.classes_).index("gold")
    return lambda frame: model.predict_proba(frame)[:, gold]


def _of_onnx(file: str) -> Callable[[pd.DataFrame], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    (name,) = (each.name for each in session.get_inputs())
    return lambda frame: session.run(None, {name: frame.to_numpy(np.float32)})[0][:, 0]
