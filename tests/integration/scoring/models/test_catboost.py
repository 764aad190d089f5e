"""CatBoost models: the same bits as CatBoost and MLflow, from cbm."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import catboost
import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.integration.scoring.models.libraries import (
    CLASS,
    EXAMPLE,
    FRAME,
    NUMBER,
    assert_same,
    damaged,
    predicted,
    refusal,
    save,
    served,
)

QUIET = {"iterations": 20, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
LABEL = np.array(["low", "mid", "high"])[CLASS]
BOTH = np.column_stack([NUMBER, -NUMBER])


def saved(folder: Path, model: Any, frame: pd.DataFrame = EXAMPLE, **own: Any) -> Path:
    return save(partial(mlflow.catboost.save_model, model), folder, model.predict(frame), frame, **own)


def trained(frame: Any = FRAME, **parameters: Any) -> catboost.CatBoostRegressor:
    return catboost.CatBoostRegressor(**QUIET | parameters).fit(frame, NUMBER)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("RMSE", NUMBER),
        ("MultiRMSE", BOTH),
        ("MultiQuantile:alpha=0.1,0.5,0.9", NUMBER),
        ("RMSEWithUncertainty", NUMBER),
        ("Poisson", CLASS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_regressor_predicts_the_same_bits_in_any_batch(tmp_path: Path, loss: str, target: np.ndarray) -> None:
    regressor = catboost.CatBoostRegressor(**QUIET, loss_function=loss).fit(FRAME, target)
    model, report = served(saved(tmp_path, regressor))
    assert (report.as_array, report.same_in_any_batch) == (True, True)
    assert_same(model, regressor.predict(FRAME))


@pytest.mark.parametrize(
    "target", [LABEL, CLASS, CLASS > 0, LABEL == "low"], ids=["strings", "integers", "two", "bool"]
)
def test_a_classifier_returns_label_and_probabilities(tmp_path: Path, target: np.ndarray) -> None:
    classifier = catboost.CatBoostClassifier(**QUIET).fit(FRAME, target)
    folder = saved(tmp_path, classifier)
    labels, _ = served(folder)
    assert_same(labels, classifier.predict(FRAME))
    model, _ = served(folder, {"serving.outputs": "predict,predict_proba"})
    assert model.outputs.names == ("prediction_label", *(f"prediction_{each}" for each in classifier.classes_))
    label = classifier.predict(FRAME).reshape(-1, 1).astype(object)
    assert_same(model, np.hstack([label, classifier.predict_proba(FRAME)]))


def test_the_class_for_any_loss_returns_numbers(tmp_path: Path) -> None:
    model = catboost.CatBoost(QUIET | {"loss_function": "Logloss"}).fit(FRAME, (CLASS > 0).astype(int))
    assert_same(served(saved(tmp_path, model))[0], model.predict(FRAME))


def test_categories_are_strings_and_integers_in_a_frame(tmp_path: Path) -> None:
    frame = FRAME.assign(tier=np.array(["gold", "silver"])[FRAME["n"] % 2], member=FRAME["c"] > 0)
    example = frame.loc[EXAMPLE.index]
    regressor = trained(frame, cat_features=["tier", "n"])
    model, report = served(saved(tmp_path, regressor, example))
    assert (report.as_array, report.same_in_any_batch) == (False, True)
    assert_same(model, regressor.predict(frame), frame)


def test_names_and_order_of_inputs_are_checked_when_it_is_loaded(tmp_path: Path) -> None:
    other = EXAMPLE[["a", "c", "n", "gap"]]
    folder = save(partial(mlflow.catboost.save_model, trained()), tmp_path, np.ones(20), other)
    assert "inputs in another order than the columns that it was fitted on: input 1 is 'a'" in refusal(folder)


def test_a_model_that_was_fitted_on_arrays_needs_the_number_of_inputs(tmp_path: Path) -> None:
    regressor = trained(FRAME.to_numpy())
    model, _ = served(save(partial(mlflow.catboost.save_model, regressor), tmp_path, np.ones(20)))
    assert_same(model, regressor.predict(FRAME.to_numpy()))


def test_a_model_saved_as_python_code_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, trained(), format="python")
    assert "it is a CatBoostRegressor in format python" in refusal(folder)


def test_without_the_library_the_refusal_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, trained())
    monkeypatch.setitem(sys.modules, "catboost", None)
    assert "pip install --require-hashes -r requirements/catboost.txt" in refusal(folder)


@pytest.mark.parametrize("damage", ["empty", "half", "end", "noise"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path, trained())
    damaged(folder / "model.cb", damage)
    assert "its file model.cb is damaged, or not a model of CatBoost" in refusal(folder)


def test_nulls_are_missing_values(tmp_path: Path) -> None:
    regressor = trained()
    model, _ = served(saved(tmp_path, regressor), missing_features="impute", impute_values={"gap": None})
    gaps = FRAME.assign(gap=np.nan)
    assert np.array_equal(predicted(model, gaps), regressor.predict(gaps))
