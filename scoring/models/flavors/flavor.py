"""What scoring needs of a model library, and the choice of the library for a version."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
import numpy as np

from scoring.errors import ModelRefused
from scoring.models.model_files import ModelFiles

if TYPE_CHECKING:
    import pandas as pd

    # Takes inputs as columns. Returns what the library returns; `scoring.models.outputs.split` lists the forms.
    PredictFunction = Callable[[pd.DataFrame | np.ndarray], Any]

LIBRARIES = {
    "mlflow.sklearn": "scoring.models.flavors.sklearn",
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
    unchecked: tuple["PredictFunction", ...] | None = None
    """Functions with the same results for an array of finite numbers, which do not check them; None without any."""


class Flavor(Protocol):
    """A model library. Modules implement it."""

    def check(self, files: ModelFiles) -> None:
        """Check the description and the file's format. Executes no code of the version.

        Raises:
            ModelRefused: the format is not allowed, the file can't be read, or contains something that is not allowed.
        """

    def load(self, files: ModelFiles, *, as_array: bool) -> LoadedModel:
        """Load a version whose files were checked. Damaged and crafted files may raise anything.

        Args:
            files: the version's files.
            as_array: whether its functions will get arrays instead of frames.
        """

    def as_mlflow(self, files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
        """Return the flavors of an MLmodel file with which MLflow's pyfunc calls this function.

        Only with what is needed, because MLflow would act on some of a description (code paths, configuration). None
        if MLflow can't call the function.
        """

    def prepare(self, raw: Any) -> None:
        """Make the model inside MLflow's pyfunc use the calling thread only."""


def flavor_of(files: ModelFiles) -> Flavor:
    """Return the library of a version.

    Raises:
        ModelRefused: it is not supported, or the version includes code.
    """
    loader = files.flavor("python_function").get("loader_module")
    if loader not in LIBRARIES:
        known = ", ".join(f"{name}.log_model" for name in LIBRARIES)
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
