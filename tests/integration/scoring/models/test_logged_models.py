"""What people log: meta-estimators, other libraries' estimators in pipelines, models written in Python."""

from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from scoring.models.flavors.estimators import prepare
from scoring.settings import Settings
from tests.integration.scoring.models.libraries import CLASS, FRAME, NUMBER, assert_same, refusal, save, served

LABEL = np.array(["low", "mid", "high"])[CLASS]
MIXED = FRAME.assign(
    tier=pd.Series(np.array(["gold", "silver"])[FRAME["n"] % 2], dtype=object), member=FRAME["c"] > 0
).drop(columns="gap")
TRUSTED = list(Settings(model_name="m").skops_trusted_types)


def saved(folder: Path, model: Any, frame: pd.DataFrame, **own: Any) -> Path:
    example = frame.dropna().head(20)
    save_model = partial(mlflow.sklearn.save_model, model, skops_trusted_types=TRUSTED)
    return save(save_model, folder, model.predict(example), example, **own)


ENCODED = ColumnTransformer(
    [
        ("numbers", StandardScaler(), make_column_selector(dtype_include="number")),
        ("codes", OneHotEncoder(handle_unknown="ignore"), ["tier"]),
        ("order", OrdinalEncoder(), ["member"]),
    ]
)


@pytest.mark.parametrize(
    ("model", "frame", "target"),
    [
        (make_pipeline(SimpleImputer(), xgboost.XGBClassifier(n_estimators=5)), FRAME, CLASS),
        (make_pipeline(SimpleImputer(), lightgbm.LGBMClassifier(n_estimators=5, verbose=-1)), FRAME, LABEL),
        (GridSearchCV(xgboost.XGBRegressor(n_estimators=5), {"max_depth": [2, 3]}, cv=2), FRAME, NUMBER),
        (
            GridSearchCV(
                make_pipeline(SimpleImputer(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2
            ),
            FRAME,
            LABEL,
        ),
        (CalibratedClassifierCV(RandomForestClassifier(5, random_state=0, n_jobs=2), cv=2), FRAME, LABEL),
        (make_pipeline(ENCODED, LogisticRegression()), MIXED, LABEL),
    ],
    ids=["XGBoost in a pipeline", "LightGBM in a pipeline", "grid of XGBoost", "grid", "calibrated", "columns"],
)
def test_it_loads_by_default_and_predicts_the_same_bits(
    tmp_path: Path, model: Any, frame: pd.DataFrame, target: np.ndarray
) -> None:
    model.fit(frame, target)
    loaded, report = served(saved(tmp_path, model, frame))
    assert report.same_in_any_batch
    assert_same(loaded, model.predict(frame), frame)


def test_every_estimator_inside_uses_one_thread() -> None:
    model = CalibratedClassifierCV(RandomForestClassifier(5, n_jobs=2), cv=2).fit(FRAME, LABEL)
    prepare(model)
    assert {each.estimator.n_jobs for each in model.calibrated_classifiers_} == {1}


class Doubled(mlflow.pyfunc.PythonModel):
    """A model written in Python."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input["c"].to_numpy() * 2


def test_a_model_written_in_python_is_loaded_only_where_the_setting_allows_it(tmp_path: Path) -> None:
    frame = FRAME.dropna().head(20)
    folder = save(partial(mlflow.pyfunc.save_model, python_model=Doubled()), tmp_path, np.ones(20), frame)
    problem = refusal(folder, model_formats=("skops", "cloudpickle"))
    assert "it is written in Python, and its format pyfunc is not allowed (SERVING_MODEL_FORMATS is" in problem
    model, _ = served(folder, model_formats=("skops", "pyfunc"))
    assert_same(model, FRAME.dropna()["c"].to_numpy() * 2, FRAME.dropna())


def test_a_flavor_that_is_not_supported_names_those_that_are(tmp_path: Path) -> None:
    frame = FRAME.dropna().head(20)
    (tmp_path / "loader.py").write_text("def _load_pyfunc(path): ...")
    save_model = partial(mlflow.pyfunc.save_model, loader_module="loader", code_paths=[str(tmp_path / "loader.py")])
    with pytest.MonkeyPatch.context() as path:
        path.syspath_prepend(tmp_path)
        folder = save(save_model, tmp_path, np.ones(20), frame)
    assert "its loader 'loader' is not supported: log it with mlflow.sklearn.log_model, mlflow.xgboost" in refusal(
        folder
    )
