"""One loaded model version, and how it predicts."""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from scoring.arrow.signature import Signature
from scoring.errors import ModelRefused, PredictionFailed, first_line
from scoring.models.model_files import ModelFiles, check_format
from scoring.models.registry import OUTPUT_COLUMN_TAG, ModelVersion

if TYPE_CHECKING:
    import pandas as pd

    # What a model makes of its inputs as columns: (n_rows,) or (n_rows, n_outputs), or such a frame.
    PredictFunction = Callable[[pd.DataFrame | np.ndarray], Any]

# Predictions are made in multiples of so many rows. Linear algebra libraries take other instructions, which round
# otherwise, for the rows that do not fill a vector register, so that a row's last bit would depend on how many rows it
# is predicted with (OpenBLAS 0.3; up to a quarter of a linear model's rows). Column-major order has no other such case.
ROWS_PER_BLOCK = 16


class Model(msgspec.Struct, frozen=True):
    """One loaded model version. Holds no connection; threads may share it, as they may scikit-learn's predict."""

    version: ModelVersion
    signature: Signature
    output_column: int | None
    predict_fn: "PredictFunction"
    as_array: bool = False
    """Whether `predict_fn` gets its inputs as a plain array instead of a frame, which is several times faster."""
    unchecked_fn: "PredictFunction | None" = None
    """What `predict_fn` does with a plain array of finite numbers, without looking at each of them first."""

    def predict(self, vectors: pa.Table) -> np.ndarray:
        """Predictions, float64 (n_rows,), row i for feature vector i. Which rows it comes with changes no prediction.

        Args:
            vectors: complete feature vectors, (n_rows, n_inputs), in signature order and types. A null reaches the
                model as NaN (None in a text column), for models that impute by themselves.

        Raises:
            PredictionFailed: the model raised, or its output is not one number a row. The text holds no feature values.
        """
        rows = vectors.num_rows
        if rows == 0:
            return np.empty(0, dtype=np.float64)
        blocks = rows + -rows % ROWS_PER_BLOCK
        inputs = _as_array(vectors, blocks) if self.as_array else fill_block(vectors).to_pandas()
        complete = self.unchecked_fn is not None and not any(column.null_count for column in vectors.columns)
        predict_fn = self.unchecked_fn if complete and self.unchecked_fn else self.predict_fn
        try:
            output = predict_fn(inputs)
        except (Exception, SystemExit) as error:  # a model is anybody's code
            problem, transient = f"{type(error).__name__} on {rows} rows", isinstance(error, MemoryError)
            raise PredictionFailed(str(self.version), problem, transient=transient) from error
        return one_number_a_row(str(self.version), output, blocks, self.output_column)[:rows]


def load_model(files: ModelFiles, as_array: bool = False) -> Model:
    """Check the files and load the model in them; that may run code, see docs/security.md.

    Args:
        files: one version's.
        as_array: whether it is to get plain arrays; only for signatures with an `array_dtype`, and only where an
            admission has shown that this changes nothing.

    Raises:
        ModelRefused: a format or type that is not allowed, or files that do not load.
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
    except Exception as error:  # truncated and crafted files raise whatever their bytes lead to
        reason = f"its files do not load ({type(error).__name__}: {first_line(error)})."
        raise ModelRefused(str(files.version), reason) from None
    unchecked_fn = unchecked_linear(estimator) if as_array and files.predict_function == "predict" else None
    return Model(files.version, files.signature, files.output_column, predict_fn, as_array, unchecked_fn)


def array_dtype(signature: Signature) -> np.dtype[Any] | None:
    """The type in which all inputs fit one array as scikit-learn itself would make it of a frame; None for no such."""
    if not all(pa.types.is_integer(column.dtype) or pa.types.is_floating(column.dtype) for column in signature.inputs):
        return None
    common = np.result_type(*(column.dtype.to_pandas_dtype() for column in signature.inputs))
    return common if common.kind == "f" else None  # an integer array has no place for an unknown value


def fill_block(vectors: pa.Table) -> pa.Table:
    """The vectors, the last one repeated until their number is a multiple of ROWS_PER_BLOCK."""
    missing = -vectors.num_rows % ROWS_PER_BLOCK
    if not missing:
        return vectors
    last = vectors.slice(vectors.num_rows - 1)
    return pa.concat_tables([vectors, *([last] * missing)])


def one_number_a_row(model: str, output: Any, rows: int, output_column: int | None) -> np.ndarray:
    """A model's output as float64 (rows,).

    Raises:
        PredictionFailed: another number of rows, several columns and none chosen, or not numbers.
    """
    values = np.asarray(output)
    if values.ndim == 2 and output_column is not None:
        if output_column >= values.shape[1]:
            raise PredictionFailed(
                model,
                f"its output has {values.shape[1]} columns and column {output_column} was asked for "
                f"(tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN, counted from 0).",
            )
        values = values[:, output_column]
    elif values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != rows:
        raise PredictionFailed(
            model,
            f"its output has shape {values.shape} for {rows} rows, and one number a row is needed: say which column "
            f"is the prediction by the version's tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN.",
        )
    if values.dtype.kind not in "fiub":
        raise PredictionFailed(
            model,
            f"its output is {values.dtype}, not numbers: log it with pyfunc_predict_fn='predict_proba' and choose the "
            f"column by the version's tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN.",
        )
    return values.astype(np.float64)


def prepare(estimator: Any) -> None:
    """Make an estimator fit to serve: its trees are sound, and it predicts in the calling thread alone.

    Trees averaged in several threads (n_jobs) add up in the order in which they happen to end, so that the last bit of
    a prediction would differ from call to call (RandomForest, scikit-learn 1.9).

    Raises:
        ValueError: a tree's nodes point outside of it; scikit-learn would follow them out of its memory.
    """
    for part in _estimators(estimator, set()):
        if "n_jobs" in vars(part):
            part.n_jobs = None
        tree = getattr(part, "tree_", None)
        if tree is not None:
            leaf = tree.children_left == -1
            _check_nodes(tree.children_left[~leaf], tree.children_right[~leaf], ~leaf, tree.node_count)
            _check_features(tree.feature[~leaf], min(tree.n_features, part.n_features_in_))
        for predictor in (each for stage in vars(part).get("_predictors", ()) for each in stage):
            inner = predictor.nodes["is_leaf"] == 0
            nodes = predictor.nodes[inner]
            _check_nodes(nodes["left"].astype(np.int64), nodes["right"].astype(np.int64), inner, len(inner))
            _check_features(nodes["feature_idx"], part.n_features_in_)
            sets = np.minimum(len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets))
            _check_features(nodes["bitset_idx"][nodes["is_categorical"] != 0], sets)


def forget_names(estimator: Any) -> None:
    """Make an estimator take arrays without warning that their columns have no names; their number is still checked."""
    for part in _estimators(estimator, set()):
        vars(part).pop("feature_names_in_", None)


def unchecked_linear(estimator: Any) -> "PredictFunction | None":
    """`predict` of scikit-learn's own linear regressors with one output; None for any other estimator.

    It checks its input first, which takes fifty times as long as the rest for a few rows (1.9). Here that was done
    before: a column of a feature vector holds finite numbers and nulls. Admission holds this against the original.
    """
    from sklearn.linear_model._base import LinearModel

    own = type(estimator).__module__.startswith("sklearn.linear_model.")
    if not (own and isinstance(estimator, LinearModel) and np.ndim(estimator.coef_) == 1):
        return None
    return lambda inputs: inputs @ estimator.coef_ + estimator.intercept_


def _as_array(vectors: pa.Table, rows: int) -> np.ndarray:
    """The vectors as an array (rows, n_inputs), column-major as pandas would hand them over; null becomes NaN.

    It has at least as many rows as they are; the last one fills what is left.
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


def _estimators(part: Any, seen: set[int]) -> Iterator[Any]:
    """Every estimator that `part` holds, itself included, wherever its attributes lead to it."""
    from sklearn.base import BaseEstimator

    if id(part) in seen:
        return
    seen.add(id(part))
    inside: Any = ()
    if isinstance(part, BaseEstimator):
        yield part
        inside = vars(part).values()
    elif isinstance(part, dict):
        inside = part.values()
    elif isinstance(part, list | tuple | set) or (isinstance(part, np.ndarray) and part.dtype == object):
        inside = part if not isinstance(part, np.ndarray) else part.flat
    for each in inside:
        if not isinstance(each, str | bytes | int | float | None):
            yield from _estimators(each, seen)


def _check_nodes(left: np.ndarray, right: np.ndarray, inner: np.ndarray, count: int) -> None:
    # scikit-learn numbers children after their parent, which also says that there is no way round in a circle.
    parents = np.flatnonzero(inner)
    for children in (left, right):
        if not ((children > parents) & (children < count)).all():
            raise ValueError("a node of its trees points outside of its tree")


def _check_features(features: np.ndarray, count: int) -> None:
    if not ((features >= 0) & (features < count)).all():
        raise ValueError("a node of its trees asks for an input that it does not have")
