"""Admission: predicts golden rows with a model version before it serves.

Golden rows are realistic rows: the version's stored input example, otherwise complete rows of the online store. Without
either, a neutral row checks only the shape and type of the output, not its values.
"""

import contextlib
import functools
import itertools
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import NEUTRAL, Signature, conform
from scoring.errors import ModelRefused, PredictionFailed
from scoring.imports import import_model_libraries
from scoring.models.failing_rows import predict_rows
from scoring.models.mlflow_reference import check_against_mlflow, same_predictions
from scoring.models.model import Model, array_dtype, describe_outputs, load_model
from scoring.models.model_files import ModelFiles
from scoring.models.output_description import choose
from scoring.models.outputs import Outputs, same_bits, usable
from scoring.models.tags import RANK_BY_TAG

GOLDEN_ROWS = 256
# Large enough for linear algebra libraries to use their algorithms for large batches.
LARGE_BATCH = 1000

RowSource = Literal["input_example", "online_store", "made_up"]


class ValidationReport(msgspec.Struct, frozen=True):
    """The result of validating a version."""

    rows: pa.Table
    """The golden rows (n_rows, n_inputs), at least one, in signature order and types."""
    predictions: pa.Table | None
    """The outputs (n_rows, n_outputs), finite unless the rows are made up; None if it raised on a made-up row."""
    outputs: Outputs
    """The version's outputs."""
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
    outputs = _describe_outputs(files, model, rows, source)
    model = msgspec.structs.replace(model, outputs=outputs)
    if source == "online_store":
        rows = _without_failing(model, rows)
    predictions = _predict_golden(model, rows, source)
    if predictions is None:
        return model, ValidationReport(rows, None, outputs, source, as_array=False, same_in_any_batch=True)
    repeated = np.resize(np.arange(rows.num_rows), LARGE_BATCH)
    batches = [rows, rows.slice(0, 1), rows.take(repeated)]
    expected = [model.predict(batch) for batch in batches]
    check_against_mlflow(files, model, batches, expected)
    same_in_any_batch = same_bits(expected[1], predictions.slice(0, 1))
    same_in_any_batch = same_in_any_batch and same_bits(expected[2], predictions.take(repeated))
    as_array = False
    if source != "made_up" and array_dtype(files.signature) is not None:
        fast = load_model(files, as_array=True, outputs=outputs)
        with contextlib.suppress(PredictionFailed):
            as_array = same_predictions(fast, batches, expected)
        model = fast if as_array else model
    same_in_any_batch = same_in_any_batch and _same_in_parts(model, rows)
    return model, ValidationReport(rows, predictions, outputs, source, as_array, same_in_any_batch)


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
    if not same_bits(predictions, report.predictions):
        raise ModelRefused(
            str(model.version), "its predictions after loading differ from those of its trial for the same rows."
        )


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


def _describe_outputs(files: ModelFiles, model: Model, rows: pa.Table, source: RowSource) -> Outputs:
    """Describe the outputs by what the model returns for the golden rows, or else for the first that it accepts."""
    tried = [rows, *(rows.slice(place, 1) for place in range(rows.num_rows))] if source == "online_store" else [rows]
    for each in tried:
        try:
            return describe_outputs(files, model, each)
        except PredictionFailed as error:
            if error.__cause__ is None:
                raise _fails(model, source, error) from None
    return choose(str(files.version), model.outputs, files.output_column, files.version.tags.get(RANK_BY_TAG))


def _without_failing(model: Model, rows: pa.Table) -> pa.Table:
    """Return the rows on which the model does not fail; all rows if it fails on each of them."""
    try:
        failures = predict_rows(model, rows)[1]
    except PredictionFailed:
        return rows
    return rows if failures is None or failures.rows.all() else rows.filter(pa.array(~failures.rows))


def _predict_golden(model: Model, rows: pa.Table, source: RowSource) -> pa.Table | None:
    try:
        predictions = model.predict(rows)
    except PredictionFailed as error:
        # A model may raise on a made-up row (an unknown category), but its output must have the right shape and type.
        if source == "made_up" and error.__cause__ is not None:
            return None
        raise _fails(model, source, error) from error
    broken = int(np.count_nonzero(~usable(predictions)))
    if broken and source != "made_up":
        raise ModelRefused(
            str(model.version),
            f"it returns no finite number for {broken} of {rows.num_rows} golden rows ({source}), although none of "
            "their inputs is missing.",
        )
    return predictions


def _fails(model: Model, source: RowSource, error: PredictionFailed) -> ModelRefused:
    return ModelRefused(str(model.version), f"it fails on its golden rows ({source}): {error.problem}")


def _same_in_parts(model: Model, rows: pa.Table) -> bool:
    """Return whether LARGE_BATCH rows of the golden rows' values have the same bits in parts of 1 to 512 rows.

    Five golden rows are too few to notice a rounding that depends on the batch for one row of a hundred.
    """
    random = np.random.default_rng(0)
    values = [column.take(random.integers(0, rows.num_rows, LARGE_BATCH)) for column in rows.columns]
    mixed = pa.Table.from_arrays(values, schema=rows.schema)
    starts = [0, *(1 << power for power in range(LARGE_BATCH.bit_length()) if 1 << power < LARGE_BATCH), LARGE_BATCH]
    try:
        parts = [model.predict(mixed.slice(start, end - start)) for start, end in itertools.pairwise(starts)]
        return same_bits(pa.concat_tables(parts), model.predict(mixed))
    except PredictionFailed:  # it does not accept such combinations
        return True
