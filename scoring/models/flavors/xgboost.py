"""XGBoost, from its UBJSON and JSON files, which are data."""

import json
from pathlib import Path
from typing import Any

from scoring.errors import ModelRefused
from scoring.models.flavors.estimators import classes_of
from scoring.models.flavors.flavor import LoadedModel, function_of, reading, refuse_categories, require
from scoring.models.flavors.trees import check_xgboost
from scoring.models.model_files import ModelFiles

__all__ = ["as_mlflow", "check", "load", "prepare"]

BOOSTER = "xgboost.core.Booster"
CLASSES = (
    BOOSTER,
    *(f"xgboost.sklearn.XGB{kind}" for kind in ("Classifier", "Regressor", "Ranker", "RFClassifier", "RFRegressor")),
)


def check(files: ModelFiles) -> None:
    """See `Flavor.check`."""
    require(files, "xgboost", "xgboost")
    if (name := _class(files)) not in CLASSES:
        raise ModelRefused(str(files.version), f"its class {name} is not XGBoost's: log one of XGBoost's own classes.")
    _file(files)
    refuse_categories(files, "XGBoost")


def load(files: ModelFiles, *, as_array: bool) -> LoadedModel:
    """See `Flavor.load`."""
    import xgboost

    file, name = _file(files), _class(files)
    with reading(files, file, "XGBoost"):
        if name == BOOSTER:
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(file)
            model: Any = _Booster(booster, as_array)
        else:
            model = getattr(xgboost, name.rpartition(".")[2])(n_jobs=1)
            model.load_model(file)
            booster = model.get_booster()
        check_xgboost(booster)
        categories = _categories(booster)
    refuse_categories(files, "XGBoost", categories)
    return LoadedModel(
        tuple(function_of(files, model, function) for function in files.functions),
        classes_of(model),
        list(booster.feature_names or ()) or booster.num_features(),
        rows_per_block=1,
    )


def as_mlflow(files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
    """See `Flavor.as_mlflow`."""
    if function != "predict":
        return None
    data = files.flavor("xgboost").get("data")
    return {
        "python_function": {"loader_module": "mlflow.xgboost", "data": data},
        "xgboost": {"data": data, "model_class": _class(files)},
    }


def prepare(raw: Any) -> None:
    """See `Flavor.prepare`."""
    booster = raw.get_booster() if hasattr(raw, "get_booster") else raw
    booster.set_param({"nthread": 1})


class _Booster:
    """A booster without scikit-learn's interface, predicting as in MLflow's pyfunc."""

    def __init__(self, booster: Any, as_array: bool) -> None:
        self._booster = booster
        self._named = not as_array
        kind = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"]
        # XGBoost 3.2 predicts with other boosters from a DMatrix only, or with other bits than from one (dart).
        self._in_place = kind == "gbtree"

    def predict(self, inputs: Any) -> Any:
        import xgboost

        if self._in_place:
            return self._booster.inplace_predict(inputs, validate_features=self._named)
        return self._booster.predict(xgboost.DMatrix(inputs, nthread=1), validate_features=self._named)


def _categories(booster: Any) -> list[str]:
    """Return the inputs that it was fitted on as pandas categories, not as the categories' codes."""
    if "c" not in (booster.feature_types or ()):
        return []
    kept = booster.get_categories(export_to_arrow=True).to_arrow()
    return [column for column, values in kept if values is not None]


def _class(files: ModelFiles) -> str:
    return str(files.flavor("xgboost").get("model_class", BOOSTER))


def _file(files: ModelFiles) -> Path:
    return files.file(files.flavor("xgboost").get("data"))
