"""scikit-learn, from skops files; from pickle and cloudpickle files, which run code, where the settings allow them."""

import importlib
import inspect
import warnings
from typing import Any

from scoring.errors import ModelRefused
from scoring.foreign_errors import first_line
from scoring.models.flavors.estimators import (
    LinearFunction,
    classes_of,
    fitted_on,
    forget_names,
    is_forest,
    prepare,
    unchecked,
)
from scoring.models.flavors.flavor import ROWS_PER_BLOCK, LoadedModel, function_of, require
from scoring.models.model_files import ModelFiles

__all__ = ["as_mlflow", "check", "load", "prepare"]

# Functions that MLflow's pyfunc calls (mlflow 3.17).
OF_MLFLOW = {"predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba"}
# Parts of scikit-learn without public estimators (scikit-learn 1.9).
NOT_PUBLIC = {"tests", "externals", "setup", "conftest", "experimental", "estimator_checks"}
REMEDIES = {
    "sklearn": (
        "mlflow.sklearn.log_model(..., serialization_format='skops', skops_trusted_types=[...]) or "
        "mlflow.sklearn.autolog(serialization_format='skops', log_input_examples=True)"
    ),
    "lightgbm": (
        "mlflow.lightgbm.log_model(model.booster_, ...), or with serialization_format='skops' to keep the names of the "
        "classes"
    ),
}

# Warnings about column names, which do not affect predictions, because the order is checked.
FEATURE_NAME_WARNINGS = "X (has|does not have valid) feature names, but "


def check(files: ModelFiles) -> None:
    """See `Flavor.check`."""
    format_ = _format(files)
    if format_ not in files.rules.formats:
        raise ModelRefused(
            str(files.version),
            f"its format {format_} is not allowed (SERVING_MODEL_FORMATS is "
            f"{','.join(files.rules.formats)}). Log it with {REMEDIES[_library(files)]}, or allow the format if you "
            "trust everyone who can write to the registry: such files run code.",
        )
    files.file(_name(files))


def load(files: ModelFiles, *, as_array: bool) -> LoadedModel:
    """See `Flavor.load`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model of another scikit-learn version warns once per estimator
        estimator = _read(files)
    prepare(estimator)
    functions = tuple(function_of(files, estimator, name) for name in files.functions)
    names = fitted_on(estimator)
    if as_array:
        forget_names(estimator)
    # A model that was fitted on arrays would warn at each call.
    warnings.filterwarnings("ignore", FEATURE_NAME_WARNINGS, UserWarning)
    faster = unchecked(estimator, files.functions) if as_array else None
    return LoadedModel(
        functions,
        classes_of(estimator),
        names,
        faster,
        rows_per_block=1 if is_forest(estimator) else ROWS_PER_BLOCK,
        quick=isinstance(faster, LinearFunction),
    )


def as_mlflow(files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
    """See `Flavor.as_mlflow`."""
    if function not in OF_MLFLOW:
        return None
    return {
        "python_function": {
            "loader_module": "mlflow.sklearn",
            "model_path": _name(files),
            "predict_fn": function,
        },
        "sklearn": serialization(files),
    }


def serialization(files: ModelFiles) -> dict[str, Any]:
    """Return the format of an estimator's file as MLflow describes it, with our list of types."""
    trusted = _trusted_types(files) if _format(files) == "skops" else []
    return {"serialization_format": _format(files), "skops_trusted_types": trusted}


def _library(files: ModelFiles) -> str:
    """Return the flavor of MLflow that wrote the file."""
    return "lightgbm" if files.flavor("python_function").get("loader_module") == "mlflow.lightgbm" else "sklearn"


def _format(files: ModelFiles) -> str:
    return str(files.flavor(_library(files)).get("serialization_format", "pickle"))


def _name(files: ModelFiles) -> str:
    pyfunc = files.flavor("python_function")
    return str(pyfunc.get("model_path") or pyfunc.get("data") or "")


def _trusted_types(files: ModelFiles) -> list[str]:
    """Return the types in a skops file, beyond the defaults of skops, all of which may be loaded.

    Raises:
        ModelRefused: the file can't be read, or one of them may not be loaded.
    """
    import skops.io

    model, file = str(files.version), files.file(_name(files))
    try:
        needed: list[str] = skops.io.get_untrusted_types(file=file)
    except Exception as error:  # for a damaged archive, classes of zipfile, json and skops
        reason = f"its file {file.name} can't be read as skops ({first_line(error)})."
        raise ModelRefused(model, reason) from None
    for library in sorted({each.partition(".")[0] for each in needed} & {"xgboost", "lightgbm", "catboost"}):
        require(files, library, library)
    refused = sorted(each for each in set(needed) - set(files.rules.trusted_types) if not is_estimator(each))
    if refused:
        raise ModelRefused(
            model,
            f"its file contains types that are not allowed: {', '.join(refused)}. Add them to "
            "SERVING_SKOPS_TRUSTED_TYPES if you trust them.",
        )
    return needed


def is_estimator(name: str) -> bool:
    """Return whether a type is a public estimator of scikit-learn, all of which skops trusts by default (0.16)."""
    from sklearn.base import BaseEstimator

    module, _, kind = name.rpartition(".")
    package = module.partition("._")[0]  # which exports it
    if not package.startswith("sklearn.") or kind.startswith("_") or NOT_PUBLIC.intersection(package.split(".")):
        return False
    try:
        found = getattr(importlib.import_module(package), kind, None)
    except ImportError:
        return False
    if not (isinstance(found, type) and issubclass(found, BaseEstimator)) or inspect.isabstract(found):
        return False
    return found is not BaseEstimator and f"{found.__module__}.{found.__name__}" == name


def _read(files: ModelFiles) -> Any:
    file = files.file(_name(files))
    if _format(files) == "skops":
        import skops.io

        return skops.io.load(file, trusted=_trusted_types(files))
    import cloudpickle

    return cloudpickle.loads(file.read_bytes())
