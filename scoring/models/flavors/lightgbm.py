"""LightGBM: boosters from their text files, and scikit-learn's interface from skops files. Both are data."""

import functools
import logging
import re
from typing import Any

import msgspec
import numpy as np

from scoring.errors import ModelRefused
from scoring.models.flavors import estimators, sklearn
from scoring.models.flavors.flavor import LoadedModel, function_of, reading, refuse_categories, require
from scoring.models.flavors.trees import check_lightgbm
from scoring.models.model_files import ModelFiles

__all__ = ["as_mlflow", "check", "load", "prepare"]

BOOSTER = "lightgbm.basic.Booster"
ESTIMATORS = tuple(f"lightgbm.sklearn.LGBM{kind}" for kind in ("Classifier", "Regressor", "Ranker"))
# The last line of a text file, which LightGBM reads without noticing that it is incomplete, or that it crashes on.
END = re.compile(rb"\npandas_categorical:.*\n\Z")

log = logging.getLogger(__name__)


def check(files: ModelFiles) -> None:
    """See `Flavor.check`."""
    require(files, "lightgbm", "lightgbm")
    if (name := _class(files)) not in (BOOSTER, *ESTIMATORS):
        raise ModelRefused(
            str(files.version), f"its class {name} is not LightGBM's: log one of LightGBM's own classes."
        )
    refuse_categories(files, "LightGBM")
    if name == BOOSTER:
        files.file(files.flavor("lightgbm").get("data"))
    else:
        sklearn.check(files)


def load(files: ModelFiles, *, as_array: bool) -> LoadedModel:
    """See `Flavor.load`."""
    import lightgbm

    lightgbm.register_logger(log)  # otherwise LightGBM prints
    if _class(files) != BOOSTER:
        loaded = sklearn.load(files, as_array=as_array)
        functions = tuple(map(_without_checks, loaded.functions)) if as_array else loaded.functions
        return msgspec.structs.replace(loaded, functions=functions, rows_per_block=1)
    file = files.file(files.flavor("lightgbm").get("data"))
    with reading(files, file, "LightGBM"):
        content = file.read_bytes()
        if END.search(content) is None:
            raise ValueError("its end is missing")
        booster = lightgbm.Booster(model_str=content.decode())
        check_lightgbm(booster)
    categories = [
        name
        for name, values in zip(booster.feature_name(), _line(content, b"feature_infos").split(), strict=True)
        if booster.pandas_categorical and ":" in values and "[" not in values
    ]
    refuse_categories(files, "LightGBM", categories)
    return LoadedModel(
        tuple(functools.partial(function_of(files, booster, name), num_threads=1) for name in files.functions),
        None,
        _fitted_on(files, booster.feature_name()),
        rows_per_block=1,
    )


def as_mlflow(files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
    """See `Flavor.as_mlflow`."""
    if function != "predict":
        return None
    flavor = files.flavor("lightgbm")
    kept: dict[str, Any] = {"data": flavor.get("data"), "model_class": _class(files)}
    if _class(files) != BOOSTER:
        kept |= sklearn.serialization(files)
    return {
        "python_function": {"loader_module": "mlflow.lightgbm", "data": flavor.get("data")},
        "lightgbm": kept,
    }


def prepare(raw: Any) -> None:
    """See `Flavor.prepare`."""
    if hasattr(raw, "booster_"):
        estimators.prepare(raw)


def _without_checks(function: Any) -> Any:
    """Return a method of an estimator without scikit-learn's checks, which take ten times as long as five rows."""
    estimator, name = function.__self__, function.__name__
    others = callable(estimator.objective) or estimator.get_params().get("pred_early_stop")
    if others or name not in {"predict", "predict_proba"}:
        return function
    predict = functools.partial(estimator.booster_.predict, num_threads=1)
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return predict

    def predict_proba(inputs: Any) -> Any:
        returned = predict(inputs)
        return returned if len(classes) > 2 else np.column_stack([1.0 - returned, returned])

    if name == "predict_proba":
        return predict_proba
    return lambda inputs: classes[np.argmax(predict_proba(inputs), axis=1)]


def _fitted_on(files: ModelFiles, names: list[str]) -> list[str] | int:
    """Return the names of the columns that a booster was fitted on, or their number if LightGBM made them up."""
    if names == [f"Column_{place}" for place in range(len(names))]:
        return len(names)
    served = list(files.signature.names)
    # LightGBM writes underscores for spaces.
    return served if names == ["_".join(name.split()) for name in served] else names


def _line(content: bytes, key: bytes) -> str:
    found = re.search(rb"^" + key + rb"=(.*)$", content, re.MULTILINE)
    return "" if found is None else found[1].decode()


def _class(files: ModelFiles) -> str:
    return str(files.flavor("lightgbm").get("model_class", BOOSTER))
