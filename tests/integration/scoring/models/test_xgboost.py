"""XGBoost models: the same bits as XGBoost and MLflow, from UBJSON and JSON."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost

from scoring.settings import Settings
from tests.integration.scoring.models.libraries import (
    CLASS,
    EXAMPLE,
    FRAME,
    NUMBER,
    assert_same,
    damaged,
    predicted,
    refusal,
    refused_on_trial,
    save,
    served,
)
from tests.support.model_folders import edit

THREADS = {"nthread": 1}
TRUSTED = list(Settings(model_name="m").skops_trusted_types)


def saved(folder: Path, model: Any, frame: pd.DataFrame = EXAMPLE, **own: Any) -> Path:
    inputs = xgboost.DMatrix(frame) if isinstance(model, xgboost.Booster) else frame
    return save(partial(mlflow.xgboost.save_model, model), folder, model.predict(inputs), frame, **own)


def trained(target: np.ndarray = NUMBER, **parameters: Any) -> xgboost.Booster:
    return xgboost.train({**THREADS, **parameters}, xgboost.DMatrix(FRAME, target), 20)


@pytest.mark.parametrize(
    ("parameters", "target"),
    [
        ({}, NUMBER),
        ({"objective": "binary:logistic"}, CLASS > 0),
        ({"objective": "multi:softprob", "num_class": 3}, CLASS),
        ({"objective": "multi:softmax", "num_class": 3}, CLASS),
        ({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}, NUMBER),
        ({"objective": "count:poisson"}, CLASS),
        ({}, np.column_stack([NUMBER, -NUMBER])),
        ({"multi_strategy": "multi_output_tree"}, np.column_stack([NUMBER, -NUMBER])),
        ({"booster": "dart", "rate_drop": 0.2}, NUMBER),
        ({"booster": "gblinear"}, NUMBER),
    ],
    ids=lambda value: ",".join(map(str, value.values())) or "default" if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("model_format", ["ubj", "json"])
def test_a_booster_predicts_the_same_bits_in_any_batch(
    tmp_path: Path, parameters: dict[str, Any], target: np.ndarray, model_format: str
) -> None:
    booster = trained(target, **parameters)
    model, report = served(saved(tmp_path, booster, model_format=model_format))
    assert (report.as_array, report.same_in_any_batch) == (True, True)
    assert_same(model, booster.predict(xgboost.DMatrix(FRAME)))


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (xgboost.XGBRegressor(n_estimators=20), NUMBER),
        (xgboost.XGBRegressor(n_estimators=20), np.column_stack([NUMBER, -NUMBER])),
        (xgboost.XGBClassifier(n_estimators=20), CLASS),
        (xgboost.XGBClassifier(n_estimators=20), CLASS > 0),
        (xgboost.XGBRFRegressor(n_estimators=20), NUMBER),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scikit_learns_interface_predicts_the_same_bits_in_any_batch(
    tmp_path: Path, model: Any, target: np.ndarray
) -> None:
    model.fit(FRAME, target)
    loaded, report = served(saved(tmp_path, model))
    assert (report.as_array, report.same_in_any_batch) == (True, True)
    assert_same(loaded, model.predict(FRAME))


@pytest.mark.parametrize("target", [CLASS, CLASS > 0], ids=["multiclass", "binary"])
def test_a_classifier_returns_label_and_probabilities(tmp_path: Path, target: np.ndarray) -> None:
    classifier = xgboost.XGBClassifier(n_estimators=20).fit(FRAME, target)
    model, _ = served(saved(tmp_path, classifier), {"serving.outputs": "predict,predict_proba"})
    classes = range(3 if target is CLASS else 2)
    assert model.outputs.names == ("prediction_label", *(f"prediction_{each}" for each in classes))
    assert_same(model, np.column_stack([classifier.predict(FRAME), classifier.predict_proba(FRAME)]))


def test_early_stopping_uses_the_best_iteration_of_a_classifier_as_xgboost_does(tmp_path: Path) -> None:
    classifier = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=2, learning_rate=1.0)
    classifier.fit(FRAME[:200], CLASS[:200], eval_set=[(FRAME[200:], CLASS[200:])], verbose=False)
    assert classifier.best_iteration < 55
    model, _ = served(saved(tmp_path, classifier), {"serving.outputs": "predict_proba"})
    assert_same(model, classifier.predict_proba(FRAME))


def test_names_and_order_of_inputs_are_checked_when_it_is_loaded(tmp_path: Path) -> None:
    folder = save(partial(mlflow.xgboost.save_model, trained()), tmp_path, np.ones(20), EXAMPLE[["a", "c", "n", "gap"]])
    assert "inputs in another order than the columns that it was fitted on: input 1 is 'a'" in refusal(folder)


def test_a_model_that_was_fitted_on_arrays_needs_the_number_of_inputs(tmp_path: Path) -> None:
    booster = xgboost.train(THREADS, xgboost.DMatrix(FRAME.to_numpy(), NUMBER), 5)
    model, _ = served(save(partial(mlflow.xgboost.save_model, booster), tmp_path, np.ones(20)))
    assert_same(model, booster.predict(xgboost.DMatrix(FRAME.to_numpy())))


def test_pandas_categories_are_refused(tmp_path: Path) -> None:
    codes = FRAME.assign(n=pd.Categorical(FRAME["n"] * 10))
    booster = xgboost.train(THREADS, xgboost.DMatrix(codes, NUMBER, enable_categorical=True), 5)
    folder = save(partial(mlflow.xgboost.save_model, booster), tmp_path, np.ones(20))
    assert "its inputs n are pandas categories" in refusal(folder)


def test_strings_are_refused(tmp_path: Path) -> None:
    folder = save(partial(mlflow.xgboost.save_model, trained()), tmp_path, np.ones(20), EXAMPLE.assign(n="x"))
    assert "XGBoost needs numbers, and its inputs n are strings" in refusal(folder)


def test_a_class_from_the_description_is_not_imported(tmp_path: Path) -> None:
    folder = edit(saved(tmp_path, trained()), lambda mlmodel: mlmodel["flavors"]["xgboost"].update(model_class="os.X"))
    assert "its class os.X is not XGBoost's" in refusal(folder)


def test_without_the_library_the_refusal_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, trained())
    monkeypatch.setitem(sys.modules, "xgboost", None)
    assert "pip install --require-hashes -r requirements/xgboost.txt" in refusal(folder)


@pytest.mark.parametrize("damage", ["empty", "half", "end", "noise"])
@pytest.mark.parametrize("model_format", ["ubj", "json"])
def test_a_damaged_file_is_refused(tmp_path: Path, model_format: str, damage: str) -> None:
    folder = saved(tmp_path, trained(), model_format=model_format)
    damaged(folder / f"model.{model_format}", damage)
    assert f"its file model.{model_format} is damaged, or not a model of XGBoost" in refusal(folder)


def test_a_file_that_crashes_xgboost_crashes_the_trial_only(tmp_path: Path) -> None:
    folder = saved(tmp_path, trained(), model_format="json")
    file = folder / "model.json"
    # A child beyond the tree: XGBoost follows it.
    content = file.read_text()
    start = content.index('"left_children":[') + len('"left_children":[')
    file.write_text(content[:start] + "1000000000" + content[content.index(",", start) :])
    assert "crashed during its trial" in refused_on_trial(folder)


@pytest.mark.parametrize("parameters", [{}, {"booster": "dart"}], ids=["gbtree", "dart"])
@pytest.mark.parametrize("feature", [FRAME.shape[1], 10**6])
def test_a_node_that_uses_an_input_beyond_the_last_is_refused(
    tmp_path: Path, parameters: dict[str, Any], feature: int
) -> None:
    folder = saved(tmp_path, trained(**parameters), model_format="json")
    file = folder / "model.json"
    model = json.loads(file.read_text())
    boosted = model["learner"]["gradient_booster"]
    boosted.get("gbtree", boosted)["model"]["trees"][0]["split_indices"][0] = feature
    file.write_text(json.dumps(model))
    assert "a node of its trees uses an input that the model does not have" in refusal(folder)


def test_the_nodes_of_estimators_are_checked_too(tmp_path: Path) -> None:
    model = xgboost.XGBRegressor(n_estimators=5).fit(FRAME, NUMBER)
    content = json.loads(model.get_booster().save_raw("json"))
    content["learner"]["gradient_booster"]["model"]["trees"][0]["split_indices"][0] = FRAME.shape[1]
    folder = save(
        partial(mlflow.sklearn.save_model, model, skops_trusted_types=TRUSTED), tmp_path, model.predict(EXAMPLE)
    )
    served(folder)
    model.get_booster().load_model(bytearray(json.dumps(content).encode()))
    skops.io.dump(model, folder / "model.skops")
    assert "a node of its trees uses an input that the model does not have" in refusal(folder)


def test_nulls_are_missing_values(tmp_path: Path) -> None:
    booster = trained()
    model, _ = served(saved(tmp_path, booster), missing_features="impute", impute_values={"gap": None})
    gaps = FRAME.assign(gap=np.nan)
    assert np.array_equal(predicted(model, gaps), booster.predict(xgboost.DMatrix(gaps)))
