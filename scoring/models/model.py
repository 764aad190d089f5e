"""Loads a model version and predicts with it."""

import warnings
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import Signature
from scoring.errors import ModelRefused, PredictionFailed, first_line
from scoring.models.estimators import check_inputs, forget_names, prepare, unchecked_linear
from scoring.models.model_files import ModelFiles, check_format
from scoring.models.registry import OUTPUT_COLUMN_TAG, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    # Takes inputs as columns, returns (n_rows,) or (n_rows, n_outputs), an array or a frame.
    PredictFunction = Callable[[pd.DataFrame | np.ndarray], Any]

# Models predict multiples of this number of rows. For rows that do not fill a vector register, linear algebra libraries
# use other instructions, which round differently: a row's last bit would depend on the number of rows in the batch
# (OpenBLAS 0.3; up to a quarter of a linear model's rows). This is the only such case in column-major order.
ROWS_PER_BLOCK = 16
# scikit-learn's warnings about column names, which do not affect predictions, because the order is checked.
FEATURE_NAME_WARNINGS = "X (has|does not have valid) feature names, but "


class Model(msgspec.Struct, frozen=True):
    """One loaded model version, without connections. Threads may share it, like scikit-learn's predict."""

    version: ModelVersion
    signature: Signature
    output_column: int | None
    predict_fn: "PredictFunction"
    as_array: bool = False
    """Whether `predict_fn` takes an array instead of a frame, which is several times faster."""
    unchecked_fn: "PredictFunction | None" = None
    """Returns the same result as `predict_fn` for an array of finite numbers, without checking them."""
    nullable_inputs: frozenset[str] = frozenset()
    """Inputs that may be null; see `frame_of`."""

    def predict(self, vectors: pa.Table) -> np.ndarray:
        """Return predictions, float64 (n_rows,). Each row's prediction does not depend on the other rows.

        Args:
            vectors: feature vectors (n_rows, n_inputs), in signature order and types. The model gets null as NaN (None
                in a string or boolean column), for models that impute.

        Raises:
            PredictionFailed: the model raised, or its output is not one number per row. The message contains no values.
        """
        rows = vectors.num_rows
        if rows == 0:
            return np.empty(0, dtype=np.float64)
        filled = rows + -rows % ROWS_PER_BLOCK
        predict_fn = self.predict_fn
        if self.unchecked_fn is not None and not any(column.null_count for column in vectors.columns):
            predict_fn = self.unchecked_fn
        try:
            if self.as_array:
                output = predict_fn(_as_array(vectors, filled))
            else:
                output = predict_fn(frame_of(fill_block(vectors), self.nullable_inputs))
        except (Exception, SystemExit) as error:  # a model may raise anything
            problem, transient = f"{type(error).__name__} on {rows} rows", isinstance(error, MemoryError)
            raise PredictionFailed(str(self.version), problem, transient=transient) from error
        return one_number_per_row(str(self.version), output, filled, self.output_column)[:rows]


def load_model(files: ModelFiles, as_array: bool = False) -> Model:
    """Check the files and load the model in them, which may run code: see docs/security.md.

    Args:
        files: one version's files.
        as_array: whether the model gets arrays. True is allowed only for signatures with an `array_dtype`, and only
            after an admission with the same predictions.

    Raises:
        ModelRefused: a format or type is not allowed, the files do not load, or the signature's inputs are not the
            columns that the model was fitted on.
    """
    trusted = check_format(files)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model of another scikit-learn version warns once per estimator
            estimator = _read(files, trusted)
        prepare(estimator)
        fitted_otherwise = check_inputs(estimator, files.signature.names)
        if as_array:
            forget_names(estimator)
        predict_fn = getattr(estimator, files.predict_function)
    except Exception as error:  # truncated and crafted files may raise anything
        reason = f"its files do not load ({type(error).__name__}: {first_line(error)})."
        raise ModelRefused(str(files.version), reason) from None
    if fitted_otherwise is not None:
        remedy = "Infer the signature from the frame that the model was fitted on, and log it again."
        raise ModelRefused(str(files.version), f"{fitted_otherwise}. {remedy}")
    # A model that was fitted on arrays would warn at each call.
    warnings.filterwarnings("ignore", FEATURE_NAME_WARNINGS, UserWarning)
    unchecked_fn = unchecked_linear(estimator) if as_array and files.predict_function == "predict" else None
    nullable = files.rules.nullable_inputs
    return Model(files.version, files.signature, files.output_column, predict_fn, as_array, unchecked_fn, nullable)


def array_dtype(signature: Signature) -> np.dtype[Any] | None:
    """Return the type of the array that scikit-learn would create from a frame of these inputs; None if unsupported."""
    if not all(pa.types.is_integer(column.dtype) or pa.types.is_floating(column.dtype) for column in signature.inputs):
        return None
    common = np.result_type(*(column.dtype.to_pandas_dtype() for column in signature.inputs))
    return common if common.kind == "f" else None  # an integer array has no value for "unknown"


def fill_block(vectors: pa.Table) -> pa.Table:
    """Return the vectors, with the last one repeated up to a multiple of ROWS_PER_BLOCK."""
    missing = -vectors.num_rows % ROWS_PER_BLOCK
    return pa.concat_tables([vectors, *([vectors.slice(vectors.num_rows - 1)] * missing)]) if missing else vectors


def frame_of(vectors: pa.Table, nullable_inputs: frozenset[str]) -> "pd.DataFrame":
    """Return the vectors as a pandas frame whose column types do not depend on the rows.

    pandas has no integer or boolean column with nulls: Arrow returns float64 or object columns instead. A nullable
    input has that type in every frame.

    Raises:
        ArrowInvalid: float64 can't represent an integer of a nullable input.
    """
    booleans = []
    for place, field in enumerate(vectors.schema if nullable_inputs else ()):
        if field.name in nullable_inputs and pa.types.is_integer(field.type):
            vectors = vectors.set_column(place, field.name, pc.cast(vectors.column(place), pa.float64()))
        elif field.name in nullable_inputs and pa.types.is_boolean(field.type):
            booleans.append(field.name)
    frame: pd.DataFrame = vectors.to_pandas()
    return frame.astype(dict.fromkeys(booleans, object)) if booleans else frame


def one_number_per_row(model: str, output: Any, rows: int, output_column: int | None) -> np.ndarray:
    """Return a model's output as float64 (rows,).

    Raises:
        PredictionFailed: the number of rows differs, no output column is chosen, or the output is not numeric.
    """
    setting = f"the version's tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN"
    values = np.asarray(output)
    if values.ndim == 2 and output_column is not None:
        if output_column >= values.shape[1]:
            problem = (
                f"its output has {values.shape[1]} columns and column {output_column} (counted from 0) is chosen by"
            )
            raise PredictionFailed(model, f"{problem} {setting}.")
        values = values[:, output_column]
    elif values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != rows:
        problem = f"its output has shape {values.shape} for {rows} rows, not one number per row: choose a column with"
        raise PredictionFailed(model, f"{problem} {setting}.")
    if values.dtype.kind not in "fiub":
        remedy = f"log it with pyfunc_predict_fn='predict_proba' and choose the column with {setting}."
        raise PredictionFailed(model, f"its output is {values.dtype}, not numbers: {remedy}")
    return values.astype(np.float64)


def _as_array(vectors: pa.Table, rows: int) -> np.ndarray:
    """Return the vectors as a column-major array (rows, n_inputs), as pandas would pass it; null becomes NaN.

    The last vector fills the rows beyond their number.
    """
    types = {field.type.to_pandas_dtype() for field in vectors.schema}
    columns = np.empty((vectors.num_columns, rows), np.result_type(*types))
    known = vectors.num_rows
    for row, column in zip(columns, vectors.columns, strict=True):
        row[:known] = column.to_numpy()
    columns[:, known:] = columns[:, known - 1 : known]
    return columns.T


def _read(files: ModelFiles, trusted: list[str]) -> Any:
    if files.serialization == "skops":
        import skops.io

        return skops.io.load(files.model_file, trusted=trusted)
    import cloudpickle

    return cloudpickle.loads(files.model_file.read_bytes())
