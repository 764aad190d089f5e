"""LightGBM models: the same bits as LightGBM and MLflow, from text and from skops."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io

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

QUIET = {"verbose": -1, "num_threads": 1}
LABEL = np.array(["low", "mid", "high"])[CLASS]


def saved(folder: Path, model: Any, frame: pd.DataFrame = EXAMPLE, **own: Any) -> Path:
    return save(partial(mlflow.lightgbm.save_model, model), folder, model.predict(frame), frame, **own)


def trained(target: np.ndarray = NUMBER, frame: Any = FRAME, **parameters: Any) -> lightgbm.Booster:
    return lightgbm.train({**QUIET, **parameters}, lightgbm.Dataset(frame, target), 20)


@pytest.mark.parametrize(
    ("parameters", "target"),
    [
        ({}, NUMBER),
        ({"objective": "binary"}, CLASS > 0),
        ({"objective": "multiclass", "num_class": 3}, CLASS),
        ({"objective": "multiclassova", "num_class": 3}, CLASS),
        ({"objective": "quantile", "alpha": 0.9}, NUMBER),
        ({"objective": "poisson"}, CLASS),
        ({"linear_tree": True}, NUMBER),
        ({"boosting": "dart"}, NUMBER),
    ],
    ids=lambda value: ",".join(map(str, value.values())) or "default" if isinstance(value, dict) else "",
)
def test_a_booster_predicts_the_same_bits_in_any_batch(
    tmp_path: Path, parameters: dict[str, Any], target: np.ndarray
) -> None:
    booster = trained(target, **parameters)
    model, report = served(saved(tmp_path, booster))
    assert (report.as_array, report.same_in_any_batch) == (True, True)
    assert_same(model, booster.predict(FRAME))


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (lightgbm.LGBMRegressor(n_estimators=20, verbose=-1), NUMBER),
        (lightgbm.LGBMClassifier(n_estimators=20, verbose=-1), LABEL),
        (lightgbm.LGBMClassifier(n_estimators=20, verbose=-1), CLASS > 0),
    ],
    ids=["regressor", "strings", "booleans"],
)
def test_scikit_learns_interface_predicts_the_same_bits_in_any_batch(
    tmp_path: Path, model: Any, target: np.ndarray
) -> None:
    model.fit(FRAME, target)
    loaded, report = served(saved(tmp_path, model))
    assert (report.as_array, report.same_in_any_batch) == (True, True)
    assert_same(loaded, model.predict(FRAME))


@pytest.mark.parametrize("target", [LABEL, CLASS > 0], ids=["multiclass", "binary"])
def test_a_classifier_returns_label_and_probabilities(tmp_path: Path, target: np.ndarray) -> None:
    classifier = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1).fit(FRAME, target)
    model, _ = served(saved(tmp_path, classifier), {"serving.outputs": "predict,predict_proba"})
    assert model.outputs.names == ("prediction_label", *(f"prediction_{each}" for each in classifier.classes_))
    expected = np.column_stack([classifier.predict(FRAME).astype(object), classifier.predict_proba(FRAME)])
    assert_same(model, expected)


def test_without_skops_it_is_a_pickle_and_the_refusal_says_what_to_log(tmp_path: Path) -> None:
    model = lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(FRAME, NUMBER)
    folder = saved(tmp_path, model, serialization_format="cloudpickle")
    assert "Log it with mlflow.lightgbm.log_model(model.booster_, ...)" in refusal(folder)
    loaded, _ = served(folder, model_formats=("skops", "cloudpickle"))
    assert_same(loaded, model.predict(FRAME))


def test_an_estimator_that_stops_early_in_its_predictions_does_so_here(tmp_path: Path) -> None:
    early = {"pred_early_stop": True, "pred_early_stop_freq": 1, "pred_early_stop_margin": 0.05}
    model = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1, **early).fit(FRAME, CLASS > 0)
    loaded, _ = served(saved(tmp_path, model, EXAMPLE.iloc[5:10]))
    assert_same(loaded, model.predict(FRAME))


def test_names_and_order_of_inputs_are_checked_when_it_is_loaded(tmp_path: Path) -> None:
    other = EXAMPLE[["a", "c", "n", "gap"]]
    folder = save(partial(mlflow.lightgbm.save_model, trained()), tmp_path, np.ones(20), other)
    assert "inputs in another order than the columns that it was fitted on: input 1 is 'a'" in refusal(folder)


def test_a_model_that_was_fitted_on_arrays_needs_the_number_of_inputs(tmp_path: Path) -> None:
    booster = trained(frame=FRAME.to_numpy())
    model, _ = served(save(partial(mlflow.lightgbm.save_model, booster), tmp_path, np.ones(20)))
    assert_same(model, booster.predict(FRAME.to_numpy()))


def test_lightgbm_writes_underscores_for_spaces_in_names(tmp_path: Path) -> None:
    spaced = {"c": "the c", "a": "the a"}
    booster = trained(frame=FRAME.rename(columns=spaced))
    model, _ = served(saved(tmp_path, booster, EXAMPLE.rename(columns=spaced)))
    assert_same(model, booster.predict(FRAME), FRAME.rename(columns=spaced))


def test_pandas_categories_are_refused(tmp_path: Path) -> None:
    booster = trained(frame=FRAME.assign(n=pd.Categorical(FRAME["n"] * 10)))
    folder = save(partial(mlflow.lightgbm.save_model, booster), tmp_path, np.ones(20))
    assert "LightGBM needs numbers, and its inputs n are pandas categories" in refusal(folder)


def test_integers_may_be_categories(tmp_path: Path) -> None:
    booster = lightgbm.train(QUIET, lightgbm.Dataset(FRAME, NUMBER, categorical_feature=["n"]), 20)
    model, _ = served(saved(tmp_path, booster))
    assert_same(model, booster.predict(FRAME))


def test_a_class_from_the_description_is_not_used(tmp_path: Path) -> None:
    folder = edit(saved(tmp_path, trained()), lambda mlmodel: mlmodel["flavors"]["lightgbm"].update(model_class="os.X"))
    assert "its class os.X is not LightGBM's" in refusal(folder)


def test_without_the_library_the_refusal_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, trained())
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    assert "pip install --require-hashes -r requirements/lightgbm.txt" in refusal(folder)


@pytest.mark.parametrize("damage", ["empty", "half", "end", "noise"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path, trained())
    damaged(folder / "model.lgb", damage)
    assert "its file model.lgb is damaged, or not a model of LightGBM" in refusal(folder)


def test_a_file_that_ends_the_process_ends_the_trial_only(tmp_path: Path) -> None:
    folder = saved(tmp_path, trained())
    file = folder / "model.lgb"
    file.write_text(file.read_text().replace("split_feature=", "split_future=", 1))
    assert "crashed during its trial" in refused_on_trial(folder)


def with_last_node(booster: lightgbm.Booster, line: str, value: int) -> str:
    """The booster's text with another value for the last node of the first tree."""
    text = re.sub(r"(?m)^tree_sizes=.*\n", "", booster.model_to_string())
    return re.sub(rf"(?m)^({line}=.*) \S+$", rf"\1 {value}", text, count=1)


@pytest.mark.parametrize(
    ("line", "value"),
    [("left_child", 0), ("right_child", 10**6), ("left_child", -(10**6)), ("split_feature", 4), ("decision_type", 1)],
)
def test_a_node_that_leads_out_of_the_model_or_round_in_a_circle_is_refused(
    tmp_path: Path, line: str, value: int
) -> None:
    folder = saved(tmp_path, trained())
    (folder / "model.lgb").write_text(with_last_node(trained(), line, value))
    assert "its file model.lgb is damaged, or not a model of LightGBM (ValueError: a node" in refusal(folder)


@pytest.mark.parametrize("parameters", [{}, {"linear_tree": True}], ids=["constants", "linear"])
def test_the_nodes_of_estimators_are_checked_too(tmp_path: Path, parameters: dict[str, Any]) -> None:
    model = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, **parameters).fit(FRAME, NUMBER)
    folder = saved(tmp_path, model)
    served(folder)
    model.booster_.model_from_string(with_last_node(model.booster_, "left_child", 0))
    skops.io.dump(model, folder / "model.skops")
    assert "its files do not load (ValueError: a node of its trees points outside its tree)" in refusal(folder)


def test_nulls_are_missing_values(tmp_path: Path) -> None:
    booster = trained()
    model, _ = served(saved(tmp_path, booster), missing_features="impute", impute_values={"gap": None})
    gaps = FRAME.assign(gap=np.nan)
    assert np.array_equal(predicted(model, gaps), booster.predict(gaps))


def test_loading_and_predicting_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, trained(verbose=1))
    capfd.readouterr()
    served(folder)
    assert capfd.readouterr().out == ""
