"""Models written in Python (`mlflow.pyfunc.PythonModel`), which are code, where the settings allow them."""

from typing import Any

from scoring.errors import ModelRefused
from scoring.imports import import_mlflow
from scoring.models.flavors.flavor import LoadedModel, function_of
from scoring.models.model_files import ModelFiles

__all__ = ["as_mlflow", "check", "load", "prepare"]


def check(files: ModelFiles) -> None:
    """See `Flavor.check`."""
    if "pyfunc" not in files.rules.formats:
        raise ModelRefused(
            str(files.version),
            "it is written in Python, and its format pyfunc is not allowed (SERVING_MODEL_FORMATS is "
            f"{','.join(files.rules.formats)}). Log the model inside it with the flavor of its library, or allow the "
            "format if you trust everyone who can write to the registry: such files run code.",
        )


def load(files: ModelFiles, *, as_array: bool) -> LoadedModel:  # noqa: ARG001 - admission tries both
    """See `Flavor.load`."""
    import_mlflow()
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(files.folder), suppress_warnings=True)
    return LoadedModel(tuple(function_of(files, model, name) for name in files.functions), None, None)


def as_mlflow(files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:  # noqa: ARG001 - it is MLflow's
    """See `Flavor.as_mlflow`."""
    return None


def prepare(raw: Any) -> None:
    """See `Flavor.prepare`."""
