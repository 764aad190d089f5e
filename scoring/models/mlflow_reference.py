"""Checks that a model version predicts what MLflow's own pyfunc of the same files predicts."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from scoring.errors import ModelRefused
from scoring.models.flavors.flavor import flavor_of
from scoring.models.flavors.sklearn import FEATURE_NAME_WARNINGS
from scoring.models.model import Model
from scoring.models.model_files import ModelFiles
from scoring.models.outputs import same_bits


def check_against_mlflow(files: ModelFiles, model: Model, batches: list[pa.Table], expected: list[pa.Table]) -> None:
    """Compare the predictions of these batches with those of MLflow's own pyfunc, if MLflow can call the functions.

    Args:
        files: the version's files.
        model: the version, loaded from them.
        batches: rows in signature order and types.
        expected: the model's outputs for each batch.

    Raises:
        ModelRefused: a prediction differs, or MLflow's own pyfunc fails.
    """
    name = str(files.version)
    try:
        functions = [_mlflow_function(files, function) for function in files.functions]
        if None in functions:
            return
        reference = msgspec.structs.replace(
            model, functions=tuple(functions), nullable_inputs=_nullable_integers(files)
        )
        same = same_predictions(reference, batches, expected)
    except ModelRefused:
        raise
    except Exception as error:  # not quoted, because its message may contain whole frames
        kind = type(error.__cause__ or error).__name__
        raise ModelRefused(name, f"MLflow's own pyfunc fails on its golden rows ({kind}).") from None
    if not same:
        raise ModelRefused(
            name,
            "its predictions differ from those of MLflow's own pyfunc for the same rows.",
        )


def _mlflow_function(files: ModelFiles, function: str) -> Any:
    """Return MLflow's pyfunc for a function of the same files, loaded by our rules; None if MLflow can't call it."""
    import mlflow.pyfunc
    import yaml

    flavor = flavor_of(files)
    flavors = flavor.as_mlflow(files, function)
    if flavors is None:
        return None
    description = {
        "flavors": flavors,
        "signature": {"inputs": _inputs_as_served(files)},
    }
    with tempfile.TemporaryDirectory(prefix="pyfunc-") as folder, _mlflow_may_load(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in files.folder.iterdir():
            if entry.name != "MLmodel":
                (Path(folder) / entry.name).symlink_to(entry.resolve())
        (Path(folder) / "MLmodel").write_text(yaml.safe_dump(description), encoding="utf-8")
        pyfunc = mlflow.pyfunc.load_model(folder, suppress_warnings=True)
    flavor.prepare(pyfunc.get_raw_model())
    return pyfunc.predict


def _nullable_integers(files: ModelFiles) -> frozenset[str]:
    return frozenset(
        column.name
        for column in files.signature.inputs
        if column.name in files.rules.nullable_inputs and pa.types.is_integer(column.dtype)
    )


def _inputs_as_served(files: ModelFiles) -> str:
    """Return the signature's inputs in MLflow's JSON, with the type that nullable integers have in a frame."""
    columns = msgspec.json.decode(files.description["signature"]["inputs"])
    for column in columns:
        if column["name"] in files.rules.nullable_inputs and column["type"] in {"integer", "long"}:
            column["type"] = "double"
    return msgspec.json.encode(columns).decode()


@contextlib.contextmanager
def _mlflow_may_load() -> Iterator[None]:
    # Otherwise the variable forbids MLflow from trusting the listed types. Here the list comes from the settings.
    variable = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    before = os.environ.get(variable)
    os.environ[variable] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def same_predictions(model: Model, batches: list[pa.Table], expected: list[pa.Table]) -> bool:
    """Return whether the model's outputs for these batches are the expected ones, to the bit. A warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", FEATURE_NAME_WARNINGS, UserWarning)
        return all(same_bits(model.predict(batch), values) for batch, values in zip(batches, expected, strict=True))
