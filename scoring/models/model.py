"""One loaded model version, and how it predicts."""

import warnings
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from scoring.arrow.signature import Signature
from scoring.errors import ModelRefused, PredictionFailed, first_line
from scoring.models.estimators import forget_names, prepare, unchecked_linear
from scoring.models.model_files import ModelFiles, check_format
from scoring.models.registry import OUTPUT_COLUMN_TAG, ModelVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    # From inputs as columns to (n_rows,) or (n_rows, n_outputs), an array or a frame.
    PredictFunction = Callable[[pd.DataFrame | np.ndarray], Any]

# Models predict multiples of so many rows. For rows that do not fill a vector register, linear algebra libraries use
# other instructions, which round differently: a row's last bit would depend on the number of rows beside it (OpenBLAS
# 0.3; up to a quarter of a linear model's rows). Column-major order has no other such case.
ROWS_PER_BLOCK = 16


class Model(msgspec.Struct, frozen=True):
    """One loaded model version. Holds no connection; threads may share it, as they may scikit-learn's predict."""

    version: ModelVersion
    signature: Signature
    output_column: int | None
    predict_fn: "PredictFunction"
    as_array: bool = False
    """Whether `predict_fn` takes an array instead of a frame, which is several times faster."""
    unchecked_fn: "PredictFunction | None" = None
    """Gives the same as `predict_fn` for an array of finite numbers, without checking each of them."""

    def predict(self, vectors: pa.Table) -> np.ndarray:
        """Predictions, float64 (n_rows,); row i belongs to feature vector i, whatever rows are beside it.

        Args:
            vectors: feature vectors (n_rows, n_inputs), in signature order and types. The model gets null as NaN (None
                in a string column), for models that impute.

        Raises:
            PredictionFailed: the model raised, or its output is not one number per row. Its message holds no values.
        """
        rows = vectors.num_rows
        if rows == 0:
            return np.empty(0, dtype=np.float64)
        filled = rows + -rows % ROWS_PER_BLOCK
        inputs = _as_array(vectors, filled) if self.as_array else fill_block(vectors).to_pandas()
        predict_fn = self.predict_fn
        if self.unchecked_fn is not None and not any(column.null_count for column in vectors.columns):
            predict_fn = self.unchecked_fn
        try:
            output = predict_fn(inputs)
        except (Exception, SystemExit) as error:  # a model is foreign code
            problem, transient = f"{type(error).__name__} on {rows} rows", isinstance(error, MemoryError)
            raise PredictionFailed(str(self.version), problem, transient=transient) from error
        return one_number_per_row(str(self.version), output, filled, self.output_column)[:rows]


def load_model(files: ModelFiles, as_array: bool = False) -> Model:
    """Check the files and load the model in them, which may run code: see docs/security.md.

    Args:
        files: one version's files.
        as_array: whether the model gets arrays. Only for signatures with an `array_dtype`, and only after an admission
            that found the same predictions.

    Raises:
        ModelRefused: a format or type is not allowed, or the files do not load.
    """
    trusted = check_format(files)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model of another scikit-learn version warns once per estimator
            estimator = _read(files, trusted)
        prepare(estimator)
        if as_array:
            forget_names(estimator)
        predict_fn = getattr(estimator, files.predict_function)
    except Exception as error:  # truncated and crafted files raise anything
        reason = f"its files do not load ({type(error).__name__}: {first_line(error)})."
        raise ModelRefused(str(files.version), reason) from None
    unchecked_fn = unchecked_linear(estimator) if as_array and files.predict_function == "predict" else None
    return Model(files.version, files.signature, files.output_column, predict_fn, as_array, unchecked_fn)


def array_dtype(signature: Signature) -> np.dtype[Any] | None:
    """The type of the array that scikit-learn would make of a frame of these inputs; None if they don't fit one."""
    if not all(pa.types.is_integer(column.dtype) or pa.types.is_floating(column.dtype) for column in signature.inputs):
        return None
    common = np.result_type(*(column.dtype.to_pandas_dtype() for column in signature.inputs))
    return common if common.kind == "f" else None  # an integer array has no value for "unknown"


def fill_block(vectors: pa.Table) -> pa.Table:
    """The vectors, with the last one repeated up to a multiple of ROWS_PER_BLOCK."""
    missing = -vectors.num_rows % ROWS_PER_BLOCK
    return pa.concat_tables([vectors, *([vectors.slice(vectors.num_rows - 1)] * missing)]) if missing else vectors


def one_number_per_row(model: str, output: Any, rows: int, output_column: int | None) -> np.ndarray:
    """A model's output as float64 (rows,).

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
    """The vectors as a column-major array (rows, n_inputs), as pandas would pass it; null becomes NaN.

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
