"""Preparation and checks of scikit-learn estimators."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from scoring.models.flavors.trees import check_features, check_lightgbm, check_nodes, check_xgboost

if TYPE_CHECKING:
    from scoring.models.flavors.flavor import PredictFunctions


def prepare(estimator: Any) -> None:
    """Check an estimator's trees, and make it predict in the calling thread only.

    With several threads (n_jobs), the order in which the trees' results are added depends on which thread ends first,
    and so does the last bit of a prediction (RandomForest, scikit-learn 1.9).

    Raises:
        ValueError: a node of a tree points outside its tree, and scikit-learn would read out of bounds.
    """
    for part in _estimators(estimator, set()):
        if "n_jobs" in vars(part):
            part.n_jobs = 1  # for LightGBM, None means one thread per core
        booster = vars(part).get("_Booster")
        if hasattr(booster, "set_param"):  # XGBoost's booster keeps the number of threads with which it was trained
            booster.set_param({"nthread": 1})
            check_xgboost(booster)
        elif hasattr(booster, "model_to_string"):
            check_lightgbm(booster)
        tree = getattr(part, "tree_", None)
        if tree is not None:
            inner = tree.children_left != -1
            check_nodes(tree.children_left[inner], tree.children_right[inner], inner)
            check_features(tree.feature[inner], min(tree.n_features, part.n_features_in_))
        for predictor in (each for stage in vars(part).get("_predictors", ()) for each in stage):
            inner = predictor.nodes["is_leaf"] == 0
            nodes = predictor.nodes[inner]
            check_nodes(nodes["left"].astype(np.int64), nodes["right"].astype(np.int64), inner)
            check_features(nodes["feature_idx"], part.n_features_in_)
            sets = min(len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets))
            check_features(nodes["bitset_idx"][nodes["is_categorical"] != 0], sets)


def fitted_on(estimator: Any) -> list[str] | int | None:
    """Return the names of the columns that an estimator was fitted on, or else their number; None if unknown."""
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return fitted_on(steps[0]) if steps else None
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return [str(name) for name in names]
    count = getattr(estimator, "n_features_in_", None)
    return None if count is None else int(count)


def classes_of(estimator: Any) -> tuple[Any, ...] | None:
    """Return the labels of a classifier with one target; None for any other estimator."""
    classes = getattr(estimator, "classes_", None)
    return tuple(classes) if isinstance(classes, np.ndarray) and classes.ndim == 1 else None


def forget_names(estimator: Any) -> None:
    """Make an estimator accept arrays without a warning about column names. It still checks their number."""
    for part in _estimators(estimator, set()):
        vars(part).pop("feature_names_in_", None)


def unchecked(estimator: Any, functions: tuple[str, ...]) -> "PredictFunctions | None":
    """Return a faster way to call some functions of an estimator with finite numbers; None for most estimators.

    For a few rows, scikit-learn 1.9 spends fifty times as long on the checks of a linear model's input as on the
    prediction, and twenty times as long on those of a forest's trees. Feature vectors are already checked: their
    columns contain finite numbers and nulls. Admission compares the results with the original.
    """
    if _is_linear(estimator) and functions == ("predict",):
        return LinearFunction(estimator)
    if is_forest(estimator) and estimator.n_outputs_ == 1 and {"predict", "predict_proba"}.issuperset(functions):
        return _ForestFunctions(estimator, functions)
    return None


def is_forest(estimator: Any) -> bool:
    """Return whether an estimator is a forest, of which a row's prediction does not depend on the number of rows."""
    kind = type(estimator)
    return kind.__module__ == "sklearn.ensemble._forest" and kind.__name__.startswith(("RandomForest", "ExtraTrees"))


def _is_linear(estimator: Any) -> bool:
    from sklearn.linear_model._base import LinearModel

    own = type(estimator).__module__.startswith("sklearn.linear_model.")
    return own and isinstance(estimator, LinearModel) and np.ndim(estimator.coef_) == 1


class LinearFunction:
    """The predictions of a linear regressor with one target."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator

    def __call__(self, inputs: Any) -> list[Any]:
        return [inputs @ self._estimator.coef_ + self._estimator.intercept_]


class _ForestFunctions:
    """Functions of a forest with one target, from one pass through its trees."""

    def __init__(self, forest: Any, functions: tuple[str, ...]) -> None:
        self._originals = tuple(getattr(forest, name) for name in functions)
        self._functions = functions
        self._trees = [each.tree_ for each in forest.estimators_]
        self._classes = getattr(forest, "classes_", None)

    def __call__(self, inputs: Any) -> list[Any]:
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(inputs, np.float32)
            if not np.isfinite(values).all():
                return [function(inputs) for function in self._originals]  # scikit-learn has an error for it
        # The order of additions is the forest's own.
        total = np.zeros((len(values), 1 if self._classes is None else len(self._classes)))
        for tree in self._trees:
            total += tree.predict(values)
        total /= len(self._trees)
        if self._classes is None:
            return [total[:, 0]]
        labels = self._classes.take(np.argmax(total, axis=1)) if "predict" in self._functions else None
        return [labels if name == "predict" else total for name in self._functions]


def _estimators(part: Any, seen: set[int]) -> Iterator[Any]:
    """Yield `part` if it is an estimator, and every estimator in its attributes, at any depth."""
    from sklearn.base import BaseEstimator

    if id(part) in seen:
        return
    seen.add(id(part))
    inside: Any = ()
    if isinstance(part, BaseEstimator):
        yield part
        inside = vars(part).values()
    elif isinstance(part, dict):
        inside = part.values()
    elif isinstance(part, list | tuple | set):
        inside = part
    elif isinstance(part, np.ndarray) and part.dtype == object:
        inside = part.flat
    elif type(part).__module__.startswith("sklearn.") and hasattr(part, "__dict__"):  # CalibratedClassifierCV's parts
        inside = vars(part).values()
    for each in inside:
        if not isinstance(each, str | bytes | int | float | None):
            yield from _estimators(each, seen)
