"""Admission: predicts golden rows with a model version before it serves.

Golden rows are realistic rows: the version's stored input example, otherwise complete rows of the online store. Without
either, a neutral row checks only the shape and type of the output, not its values.
"""

import contextlib
import functools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import NEUTRAL, Signature, conform
from scoring.errors import ModelRefused, PredictionFailed
from scoring.imports import import_model_libraries
from scoring.models.estimators import prepare
from scoring.models.failing_rows import predict_rows
from scoring.models.model import (
    FEATURE_NAME_WARNINGS,
    Model,
    array_dtype,
    fill_block,
    frame_of,
    load_model,
    one_number_per_row,
)
from scoring.models.model_files import ModelFiles, check_format

GOLDEN_ROWS = 256
# Large enough for linear algebra libraries to use their algorithms for large batches.
LARGE_BATCH = 1000

RowSource = Literal["input_example", "online_store", "made_up"]
Predict = Callable[[pa.Table], np.ndarray]


class ValidationReport(msgspec.Struct, frozen=True):
    """The result of validating a version."""

    rows: pa.Table
    """The golden rows (n_rows, n_inputs), at least one, in signature order and types."""
    predictions: np.ndarray | None
    """float64 (n_rows,), finite unless the rows are made up; None if the model raised on a made-up row."""
    source: RowSource
    as_array: bool
    """Whether arrays give the same predictions as frames, to the bit."""
    same_in_any_batch: bool
    """Whether a row's prediction is the same alone and among others, to the bit."""


def validate(files: ModelFiles, known_rows: pa.Table | None = None) -> tuple[Model, ValidationReport]:
    """Load a version in this process, and predict its golden rows with `Model` and with MLflow's pyfunc.

    Args:
        files: the version's files.
        known_rows: complete feature vectors to use if the version has no input example.

    Raises:
        ModelRefused: it does not load, or its input example does not fit its signature; or, on a golden row, it raises,
            does not return one finite number, or differs from MLflow's pyfunc.
    """
    import_model_libraries()
    rows, source = _golden_rows(files, known_rows)
    model = load_model(files)
    if source == "online_store":
        rows = _without_failing(model, rows)
    predictions = _predict_golden(model, rows, source)
    if predictions is None:
        return model, ValidationReport(rows, None, source, as_array=False, same_in_any_batch=True)
    batches = [rows, rows.slice(0, 1), rows.take(np.resize(np.arange(rows.num_rows), LARGE_BATCH))]
    expected = [model.predict(batch) for batch in batches]
    _check_against_mlflow(files, batches, expected)
    same_in_any_batch = _same(expected[1], predictions[:1]) and _same(expected[2], np.resize(predictions, LARGE_BATCH))
    as_array = False
    if source != "made_up" and array_dtype(files.signature) is not None:
        fast = load_model(files, as_array=True)
        as_array = _matches(fast.predict, batches, expected)
        model = fast if as_array else model
    return model, ValidationReport(rows, predictions, source, as_array, same_in_any_batch)


def verify_loaded(model: Model, report: ValidationReport) -> None:
    """Check that a model loaded here predicts what it predicted when it was validated. This also warms it up.

    Raises:
        ModelRefused: it raises, or its predictions differ.
    """
    if report.predictions is None:
        return
    try:
        predictions = model.predict(report.rows)
    except PredictionFailed as error:
        raise ModelRefused(str(model.version), f"it fails on its golden rows: {error.problem}") from error
    if not _same(predictions, report.predictions):
        raise ModelRefused(str(model.version), "its predictions here differ from those of its trial for the same rows.")


def _golden_rows(files: ModelFiles, known_rows: pa.Table | None) -> tuple[pa.Table, RowSource]:
    example = _input_example(files)
    if example is not None and example.num_rows:
        return example, "input_example"
    if known_rows is not None and known_rows.num_rows:
        return known_rows.slice(0, GOLDEN_ROWS), "online_store"
    neutral = [pa.array([NEUTRAL[column.dtype]], column.dtype) for column in files.signature.inputs]
    return pa.Table.from_arrays(neutral, schema=files.signature.schema), "made_up"


def _input_example(files: ModelFiles) -> pa.Table | None:
    """Return complete rows of the model's stored input example, at most GOLDEN_ROWS; None if there is no example."""
    import pandas as pd
    from mlflow.models import Model as MlflowModel

    info = files.description.get("saved_input_example_info")
    if info is None:
        return None
    try:
        file = (files.folder / str(info["artifact_path"])).resolve()
        if not file.is_relative_to(files.folder.resolve()):
            raise ValueError("its path leads outside the model's folder")
        example = MlflowModel.load(str(files.folder / "MLmodel")).load_input_example(str(files.folder))
        named = isinstance(example, pd.DataFrame | dict)
        frame = pd.DataFrame(example, columns=None if named else list(files.signature.names)).head(GOLDEN_ROWS)
        return _complete_rows(frame, files.signature)
    except Exception as error:  # not quoted, because its message may contain the example's values
        raise ModelRefused(
            str(files.version),
            f"its input example does not fit its signature ({type(error).__name__}): log it with an example and a "
            "signature of the same frame, or without an example.",
        ) from None


def _complete_rows(frame: Any, signature: Signature) -> pa.Table:
    columns = [
        conform(pa.array(frame[column.name], from_pandas=True), column.dtype, column.name)
        for column in signature.inputs
    ]
    complete = functools.reduce(pc.and_, map(pc.is_valid, columns))
    return pa.Table.from_arrays(columns, schema=signature.schema).filter(complete)


def _without_failing(model: Model, rows: pa.Table) -> pa.Table:
    """Return the rows on which the model does not fail; all rows if it fails on each of them."""
    try:
        failures = predict_rows(model, rows)[1]
    except PredictionFailed:
        return rows
    return rows if failures is None or failures.rows.all() else rows.filter(pa.array(~failures.rows))


def _predict_golden(model: Model, rows: pa.Table, source: RowSource) -> np.ndarray | None:
    try:
        predictions = model.predict(rows)
    except PredictionFailed as error:
        # A model may raise on a made-up row (an unknown category), but its output must have the right shape and type.
        if source == "made_up" and error.__cause__ is not None:
            return None
        reason = f"it fails on its golden rows ({source}): {error.problem}"
        raise ModelRefused(str(model.version), reason) from error
    broken = int(np.count_nonzero(~np.isfinite(predictions)))
    if broken and source != "made_up":
        raise ModelRefused(
            str(model.version),
            f"it returns no finite number for {broken} of {rows.num_rows} golden rows ({source}), although none of "
            "their inputs is missing.",
        )
    return predictions


def _check_against_mlflow(files: ModelFiles, batches: list[pa.Table], expected: list[np.ndarray]) -> None:
    model = str(files.version)
    try:
        same = _matches(_mlflow_predict(files), batches, expected)
    except ModelRefused:
        raise
    except Exception as error:  # not quoted, because its message may contain whole frames
        raise ModelRefused(model, f"MLflow's own pyfunc fails on its golden rows ({type(error).__name__}).") from None
    if not same:
        raise ModelRefused(
            model,
            "its predictions differ from those of MLflow's own pyfunc for the same rows.",
        )


def _mlflow_predict(files: ModelFiles) -> Predict:
    """Return MLflow's prediction with the same model file, loaded with our list of trusted types."""
    import mlflow.pyfunc
    import yaml

    name = f"model{files.model_file.suffix}"
    pyfunc_flavor = {
        "loader_module": "mlflow.sklearn",
        "model_path": name,
        "predict_fn": files.predict_function,
    }
    sklearn_flavor = {"serialization_format": files.serialization, "skops_trusted_types": check_format(files)}
    # The rest of the description is left out, because MLflow would act on some of it (code paths, configuration).
    description = {
        "flavors": {"python_function": pyfunc_flavor, "sklearn": sklearn_flavor},
        "signature": {**files.description["signature"], "inputs": _inputs_as_served(files)},
    }
    with tempfile.TemporaryDirectory(prefix="pyfunc-") as folder, _mlflow_may_load(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (Path(folder) / "MLmodel").write_text(yaml.safe_dump(description), encoding="utf-8")
        (Path(folder) / name).symlink_to(files.model_file.resolve())
        pyfunc = mlflow.pyfunc.load_model(folder, suppress_warnings=True)
    prepare(pyfunc.get_raw_model())
    integers = frozenset(
        column.name
        for column in files.signature.inputs
        if column.name in files.rules.nullable_inputs and pa.types.is_integer(column.dtype)
    )

    def predict(rows: pa.Table) -> np.ndarray:
        filled = fill_block(rows)
        output = pyfunc.predict(frame_of(filled, integers))
        return one_number_per_row(str(files.version), output, filled.num_rows, files.output_column)[: rows.num_rows]

    return predict


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


def _matches(predict: Predict, batches: list[pa.Table], expected: list[np.ndarray]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", FEATURE_NAME_WARNINGS, UserWarning)
        try:
            return all(_same(predict(batch), values) for batch, values in zip(batches, expected, strict=True))
        except PredictionFailed:
            return False


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    return np.array_equal(left.view(np.int64), right.view(np.int64))
