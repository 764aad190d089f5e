"""What scoring needs of a model library, and the choice of the library for a version."""

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
import numpy as np
import pyarrow as pa

from scoring.errors import ModelRefused
from scoring.foreign_errors import first_line
from scoring.models.model_files import ModelFiles
from scoring.models.tags import OUTPUTS_TAG

if TYPE_CHECKING:
    import pandas as pd

    # Takes inputs as columns. Returns what the library returns; `scoring.models.outputs.split` lists the forms.
    PredictFunction = Callable[[pd.DataFrame | np.ndarray], Any]
    # The same for all functions of a version at once.
    PredictFunctions = Callable[[pd.DataFrame | np.ndarray], list[Any]]

# For rows that do not fill a vector register, linear algebra libraries use other instructions, which round differently:
# a row's last bit would depend on the number of rows in the batch (OpenBLAS 0.3; up to a quarter of a linear model's
# rows). This is the only such case in column-major order.
ROWS_PER_BLOCK = 16

LIBRARIES = {
    "mlflow.sklearn": "scoring.models.flavors.sklearn",
    "mlflow.xgboost": "scoring.models.flavors.xgboost",
    "mlflow.lightgbm": "scoring.models.flavors.lightgbm",
    "mlflow.catboost": "scoring.models.flavors.catboost",
    "mlflow.onnx": "scoring.models.flavors.onnx",
    "mlflow.pyfunc.model": "scoring.models.flavors.pyfunc",
}
"""MLflow's loader module → the module that loads such a version here."""


class LoadedModel(msgspec.Struct, frozen=True):
    """A model in memory, whatever its library. Threads may share it."""

    functions: tuple["PredictFunction", ...]
    """The functions of `ModelFiles.functions`. They use the calling thread only."""
    classes: tuple[Any, ...] | None
    """The labels of a classifier with one target; None for any other model."""
    fitted_on: list[str] | int | None
    """The names of the columns that it was fitted on, or else their number; None if unknown."""
    unchecked: "PredictFunctions | None" = None
    """Returns the same as all functions for an array of finite numbers, without checking them; None without any."""
    rows_per_block: int = ROWS_PER_BLOCK
    """The functions are called with multiples of this number of rows."""
    quick: bool = False
    """Whether `unchecked` takes microseconds for a few rows, whatever the values, so that an event loop may call it."""


class Flavor(Protocol):
    """A model library. Modules implement it."""

    def check(self, files: ModelFiles) -> None:
        """Check the description and the file's format. Neither executes code of the version nor unpacks its file.

        Raises:
            ModelRefused: the format is not allowed, or the file is missing.
        """

    def load(self, files: ModelFiles, *, as_array: bool) -> LoadedModel:
        """Load a version whose files were checked. Damaged and crafted files may raise anything.

        Args:
            files: the version's files.
            as_array: whether its functions will get arrays instead of frames.
        """

    def as_mlflow(self, files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
        """Return the flavors of an MLmodel file with which MLflow's pyfunc calls this function.

        They contain only what is needed, because MLflow acts on some entries (code paths, configuration). None if
        MLflow can't call the function.
        """

    def prepare(self, raw: Any) -> None:
        """Make the model inside MLflow's pyfunc use the calling thread only."""


def flavor_of(files: ModelFiles) -> Flavor:
    """Return the library of a version.

    Raises:
        ModelRefused: it is not supported, or the version includes code.
    """
    loader = files.flavor("python_function").get("loader_module")
    if not isinstance(loader, str) or loader not in LIBRARIES:
        known = ", ".join(f"{name}.log_model" for name in LIBRARIES if name != "mlflow.pyfunc.model")
        raise ModelRefused(str(files.version), f"its loader {loader!r} is not supported: log it with {known}.")
    if any(each and each.get("code") for each in files.description["flavors"].values()):
        raise ModelRefused(
            str(files.version), "it includes Python code, which is never loaded: log it without code_paths."
        )
    return cast(Flavor, importlib.import_module(LIBRARIES[loader]))


def check_files(files: ModelFiles) -> None:
    """Check a version's files as far as that is possible without loading the model.

    Raises:
        ModelRefused: see `flavor_of` and `Flavor.check`.
    """
    flavor_of(files).check(files)


def require(files: ModelFiles, package: str, extra: str) -> None:
    """Check that the package of an extra is installed.

    Raises:
        ModelRefused: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ModelRefused(
            str(files.version),
            f"it needs {package}, which is not installed: pip install --require-hashes -r requirements/{extra}.txt, or "
            f"build the images with EXTRAS={extra}.",
        )


@contextlib.contextmanager
def reading(files: ModelFiles, file: Path, library: str) -> Iterator[None]:
    """Turn any error of a library's reader into a refusal."""
    try:
        yield
    except Exception as error:  # damaged and crafted files may raise anything
        # XGBoost's messages begin with the time and a line of its source, those of ONNX Runtime name the file's path.
        what = first_line(
            re.sub(
                r"^\[[\d:]+\] \S+: |^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:", "", str(error)
            )
        )
        reason = f"its file {file.name} is damaged, or not a model of {library} ({type(error).__name__}: {what})."
        raise ModelRefused(str(files.version), reason) from None


def function_of(files: ModelFiles, model: Any, name: str) -> Callable[..., Any]:
    """Return a function of a model by its name.

    Raises:
        ModelRefused: the model has no such function.
    """
    function = getattr(model, name, None)
    if not callable(function):
        raise ModelRefused(str(files.version), f"it has no function {name!r}; see its tag {OUTPUTS_TAG}.")
    return cast("Callable[..., Any]", function)


def refuse_categories(files: ModelFiles, library: str, categories: Sequence[str] = ()) -> None:
    """Check that a library that takes numbers only gets numbers.

    Args:
        files: the version's files.
        library: the library's name.
        categories: inputs that the model was fitted on as pandas categories.

    Raises:
        ModelRefused: the model has inputs of another type, or was fitted on categories, which features can't have.
    """
    strings = [
        column.name
        for column in files.signature.inputs
        if not (pa.types.is_floating(column.dtype) or pa.types.is_integer(column.dtype) or column.dtype == pa.bool_())
    ]
    if strings or categories:
        raise ModelRefused(
            str(files.version),
            f"{library} needs numbers, and its inputs {', '.join(strings or categories)} are "
            f"{'strings or timestamps' if strings else 'pandas categories'}: fit it on numbers, or as the last step of "
            "a scikit-learn Pipeline that encodes them.",
        )
