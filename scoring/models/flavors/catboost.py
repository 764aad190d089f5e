"""CatBoost, from its cbm files, which are data."""

import functools
from pathlib import Path
from typing import Any

from scoring.errors import ModelRefused
from scoring.models.flavors.flavor import LoadedModel, function_of, reading, require
from scoring.models.model_files import ModelFiles

__all__ = ["as_mlflow", "check", "load", "prepare"]

CLASSES = ("CatBoost", "CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker")


def check(files: ModelFiles) -> None:
    """See `Flavor.check`."""
    require(files, "catboost", "catboost")
    kind, format_ = _class(files), files.flavor("catboost").get("save_format", "cbm")
    if kind not in CLASSES or format_ != "cbm":
        raise ModelRefused(
            str(files.version),
            f"it is a {kind} in format {format_}: log one of {', '.join(CLASSES)} with mlflow.catboost.log_model(...), "
            "without format=.",
        )
    _file(files)


def load(files: ModelFiles, *, as_array: bool) -> LoadedModel:  # noqa: ARG001 - CatBoost takes both
    """See `Flavor.load`."""
    import catboost

    file = _file(files)
    model = getattr(catboost, _class(files))()
    with reading(files, file, "CatBoost"):
        model.load_model(str(file))
    # `predict` of the class CatBoost returns numbers, also of a model that was fitted on classes.
    classes, names = model.classes_ if _class(files) == "CatBoostClassifier" else (), model.feature_names_
    return LoadedModel(
        tuple(functools.partial(function_of(files, model, name), thread_count=1) for name in files.functions),
        tuple(classes) if len(classes) else None,
        # A model that was fitted on an array has numbers as names.
        len(names) if names == [str(place) for place in range(len(names))] else names,
        rows_per_block=1,
    )


def as_mlflow(files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
    """See `Flavor.as_mlflow`."""
    if function != "predict":
        return None
    data = files.flavor("catboost").get("data")
    return {
        "python_function": {"loader_module": "mlflow.catboost", "data": data},
        "catboost": {"data": data, "model_type": _class(files), "save_format": "cbm"},
    }


def prepare(raw: Any) -> None:
    """See `Flavor.prepare`. CatBoost's bits do not depend on its number of threads."""


def _class(files: ModelFiles) -> str:
    return str(files.flavor("catboost").get("model_type"))


def _file(files: ModelFiles) -> Path:
    return files.file(files.flavor("catboost").get("data"))
