"""Loads a model version and predicts with it."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import Signature
from scoring.errors import ModelRefused, PredictionFailed, listed
from scoring.foreign_errors import first_line
from scoring.models.flavors.flavor import ROWS_PER_BLOCK, flavor_of
from scoring.models.model_files import ModelFiles
from scoring.models.output_description import choose, describe
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion
from scoring.models.tags import RANK_BY_TAG

if TYPE_CHECKING:
    import pandas as pd

    from scoring.models.flavors.flavor import PredictFunction, PredictFunctions


# Of two threads that parse source at a time, Python 3.11 may stop one with a SystemError (python/cpython#106905), which
# would be a reason to refuse the version. numpy parses the header of each array in a file.
_one_at_a_time = threading.Lock()


class Model(msgspec.Struct, frozen=True):
    """One loaded model version, without connections. Threads may share it."""

    version: ModelVersion
    signature: Signature
    outputs: Outputs
    functions: tuple["PredictFunction", ...]
    as_array: bool = False
    """Whether `functions` take an array instead of a frame, which is several times faster."""
    unchecked: "PredictFunctions | None" = None
    """Returns the same results as `functions` for an array of finite numbers, without checking them."""
    nullable_inputs: frozenset[str] = frozenset()
    """Inputs that may be null; see `frame_of`."""
    classes: tuple[Any, ...] | None = None
    """The labels of a classifier; None for any other model."""
    rows_per_block: int = ROWS_PER_BLOCK
    """The functions are called with multiples of this number of rows."""
    quick: bool = False
    """Whether it predicts complete vectors of a few rows in microseconds, so that an event loop may call it."""

    def filled(self, rows: int) -> int:
        """Return the next multiple of `rows_per_block`."""
        return rows + -rows % self.rows_per_block

    def predict(self, vectors: pa.Table) -> pa.Table:
        """Return the outputs (n_rows, n_outputs), with `outputs.schema`. No row's outputs depend on other rows.

        Numbers may be NaN or infinite; a label is null if the model returned None.

        Args:
            vectors: feature vectors (n_rows, n_inputs), in signature order and types. The model gets null as NaN (None
                in a string or boolean column), for models that impute.

        Raises:
            PredictionFailed: the model raised, or its output is not the described one. The message contains no values.
        """
        rows = vectors.num_rows
        if rows == 0:
            return self.outputs.schema.empty_table()
        return self.outputs.table(str(self.version), self.call(vectors), rows, self.filled(rows))

    def call(self, vectors: pa.Table) -> list[Any]:
        """Return what each function returns for the vectors, of which the last is repeated up to a whole block.

        Raises:
            PredictionFailed: the model raised, which is the cause.
        """
        complete = not any(column.null_count for column in vectors.columns)
        rows = vectors.num_rows
        try:
            if self.as_array:
                inputs: Any = _as_array(vectors, self.filled(rows))
            else:
                inputs = frame_of(_fill(vectors, self.filled(rows)), self.nullable_inputs)
        except Exception as error:
            raise self._failed(error, rows) from error
        return self.call_with(inputs, rows, complete=complete)

    def call_with(self, inputs: Any, rows: int, *, complete: bool) -> list[Any]:
        """Return what each function returns for an array or frame of rows, of which `rows` count.

        Args:
            inputs: as `call` makes them from vectors.
            rows: the number of vectors.
            complete: whether no value is unknown.

        Raises:
            PredictionFailed: the model raised, which is the cause.
        """
        try:
            if self.unchecked is not None and complete:
                return self.unchecked(inputs)
            return [function(inputs) for function in self.functions]
        except (Exception, SystemExit) as error:  # a model may raise anything
            raise self._failed(error, rows) from error

    def _failed(self, error: BaseException, rows: int) -> PredictionFailed:
        problem = f"{type(error).__name__} on {rows} rows"
        return PredictionFailed(str(self.version), problem, transient=isinstance(error, MemoryError))


def load_model(files: ModelFiles, as_array: bool = False, outputs: Outputs | None = None) -> Model:
    """Check the files and load the model in them, which may run code: see docs/security.md.

    Args:
        files: one version's files.
        as_array: whether the model gets arrays. True is allowed only for signatures with an `array_dtype`, and only
            after an admission with the same predictions.
        outputs: as described when the version was admitted. If None, all of them, as far as the files describe them.

    Raises:
        ModelRefused: a format or type is not allowed, the files do not load, or the signature's inputs are not the
            columns that the model was fitted on.
    """
    model = str(files.version)
    flavor = flavor_of(files)
    flavor.check(files)
    try:
        with _one_at_a_time:
            loaded = flavor.load(files, as_array=as_array)
    except ModelRefused:
        raise
    except Exception as error:  # truncated and crafted files may raise anything
        raise ModelRefused(model, f"its files do not load ({type(error).__name__}: {first_line(error)}).") from None
    problem = _fitted_otherwise(loaded.fitted_on, files.signature.names)
    if problem is not None:
        remedy = "Infer the signature from the frame that the model was fitted on, and log it again."
        raise ModelRefused(model, f"{problem}. {remedy}")
    if outputs is None:
        outputs = describe(model, files.functions, loaded.classes, files.declared_outputs, None)
    return Model(
        files.version,
        files.signature,
        outputs,
        loaded.functions,
        as_array,
        loaded.unchecked,
        files.rules.nullable_inputs,
        loaded.classes,
        loaded.rows_per_block,
        loaded.quick,
    )


def describe_outputs(files: ModelFiles, model: Model, vectors: pa.Table) -> Outputs:
    """Return the outputs of a version by what it returns for some vectors.

    Raises:
        ModelRefused: two outputs have one name, or there is no number to rank by as its tag says.
        PredictionFailed: the model raised, which is the cause; or an output has no usable shape or type.
    """
    name, returned = str(files.version), model.call(vectors)
    outputs = describe(
        name, files.functions, model.classes, files.declared_outputs, returned, model.filled(vectors.num_rows)
    )
    return choose(name, outputs, files.output_column, files.version.tags.get(RANK_BY_TAG))


def _fitted_otherwise(fitted: list[str] | int | None, names: Sequence[str]) -> str | None:
    """Return how these inputs differ from the columns that a model was fitted on; None if they do not."""
    if isinstance(fitted, int):
        fits = fitted == len(names)
        return None if fits else f"its signature has {len(names)} inputs, but it was fitted on {fitted} columns"
    if fitted is None or fitted == list(names):
        return None
    if sorted(fitted) == sorted(names):
        place = next(place for place, pair in enumerate(zip(fitted, names, strict=True)) if pair[0] != pair[1])
        return (
            f"its signature has its inputs in another order than the columns that it was fitted on: input {place + 1} "
            f"is {names[place]!r}, and column {place + 1} was {fitted[place]!r}"
        )
    missing, unknown = sorted(set(fitted) - set(names)), sorted(set(names) - set(fitted))
    differences = [f"{what} {listed(each)}" for what, each in (("it lacks", missing), ("it adds", unknown)) if each]
    return f"its signature differs from the columns that it was fitted on ({'; '.join(differences)})"


def array_dtype(signature: Signature) -> np.dtype[Any] | None:
    """Return the type of the array that scikit-learn would create from a frame of these inputs; None if unsupported."""
    if not all(pa.types.is_integer(column.dtype) or pa.types.is_floating(column.dtype) for column in signature.inputs):
        return None
    common = np.result_type(*(column.dtype.to_pandas_dtype() for column in signature.inputs))
    return common if common.kind == "f" else None  # an integer array has no value for "unknown"


def _fill(vectors: pa.Table, rows: int) -> pa.Table:
    """Return the vectors, with the last one repeated up to this number of rows."""
    missing = rows - vectors.num_rows
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
